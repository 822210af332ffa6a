"""Files as instruments write them, of any numbers: a maker for each kind."""

import io

import numpy as np


def tiff(path, frames, **options):
    import tifffile

    tifffile.imwrite(path, frames, photometric="minisblack", **options)
    return path


def ome(path, frames):
    """(t, h, w) as an OME-TIFF."""
    return tiff(path, frames, ome=True, metadata={"axes": "TYX"})


def imagej(path, frames):
    import tifffile

    tifffile.imwrite(path, frames, imagej=True, metadata={"axes": "ZYX"})
    return path


def pages(path, frames):
    """Pages that are written one by one, of any sizes, without any description."""
    import tifffile

    with tifffile.TiffWriter(path) as file:
        for frame in frames:
            file.write(frame, metadata=None, contiguous=False)
    return path


def fits(path, frames, scale=None, **header):
    from astropy.io import fits

    part = fits.PrimaryHDU(frames)
    for key, value in header.items():
        part.header[key] = value
    if scale is not None:
        part.header["BSCALE"], part.header["BZERO"] = scale
        part._bscale, part._bzero = scale
    part.writeto(path, overwrite=True)
    return path


def nifti(path, frames, scale=None):
    """(n, h, w) as slices of a volume (h, w, n)."""
    import nibabel

    volume = np.moveaxis(frames, 0, -1)
    image = nibabel.Nifti1Image(volume, np.diag([0.5, 2, 3, 1]), dtype=volume.dtype)
    if scale is not None:
        image.header.set_slope_inter(*scale)
    nibabel.save(image, path)
    return path


def dicom(path, frames, scale=None, syntax=None, **elements):
    """(h, w) or (n, h, w) of 8 or 16 bits as one file."""
    import pydicom
    from pydicom.uid import ExplicitVRLittleEndian, generate_uid

    held = pydicom.Dataset()
    held.file_meta = pydicom.dataset.FileMetaDataset()
    held.file_meta.TransferSyntaxUID = syntax or ExplicitVRLittleEndian
    held.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    held.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    held.SOPClassUID = "1.2.840.10008.5.1.4.1.1.7"
    held.SOPInstanceUID = held.file_meta.MediaStorageSOPInstanceUID
    held.PatientName, held.Modality = "Test^Case", "CT"
    held.Rows, held.Columns = frames.shape[-2:]
    held.SamplesPerPixel, held.PhotometricInterpretation = 1, "MONOCHROME2"
    if frames.ndim == 3:
        held.NumberOfFrames = len(frames)
    held.BitsAllocated = held.BitsStored = 8 * frames.itemsize
    held.HighBit = held.BitsStored - 1
    held.PixelRepresentation = int(frames.dtype.kind == "i")
    if scale is not None:
        held.RescaleSlope, held.RescaleIntercept = scale
    content = np.ascontiguousarray(frames).tobytes()
    held.PixelData = content + bytes(len(content) % 2)
    held["PixelData"].VR = "OW" if frames.itemsize == 2 else "OB"
    for key, value in elements.items():
        setattr(held, key, value)
    held.save_as(path, enforce_file_format=True)
    return path


def picture(path, frame):
    from PIL import Image

    Image.fromarray(frame).save(path)
    return path


def written(make, *args, **options):
    """Return what a maker writes as bytes."""
    buffer = io.BytesIO()
    make(buffer, *args, **options)
    return buffer.getvalue()


#: name -> (ending, maker of (n, h, w), type of the numbers, slope and offset)
KINDS = {
    "tiff16": (".tif", tiff, np.uint16, None),
    "tiff-float": (".tiff", tiff, np.float32, None),
    "tiff-lzw": (".tif", lambda p, x: tiff(p, x, compression="lzw"), np.uint16, None),
    "ome": (".ome.tif", ome, np.uint16, None),
    "imagej": (".tif", imagej, np.uint16, None),
    "pages": (".tif", pages, np.int16, None),
    "fits": (".fits", fits, np.float32, None),
    "fits16": (".fits", fits, np.uint16, None),
    "fits-scaled": (".fit", lambda p, x: fits(p, x, (0.5, 10.0)), np.int16, (0.5, 10.0)),
    "nifti": (".nii", nifti, np.float32, None),
    "nifti-gz": (".nii.gz", nifti, np.int16, None),
    "nifti-scaled": (".nii", lambda p, x: nifti(p, x, (0.25, 3.0)), np.int16, (0.25, 3.0)),
    "dicom": (".dcm", dicom, np.uint16, None),
    "dicom-ct": (".dcm", lambda p, x: dicom(p, x, (1, -1024)), np.uint16, (1.0, -1024.0)),
    "npy": (".npy", np.save, np.float64, None),
}
