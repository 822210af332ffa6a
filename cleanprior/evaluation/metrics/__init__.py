"""What is measured of restorations and of samples."""
