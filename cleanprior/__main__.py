"""``python -m cleanprior``, for launchers: ``accelerate launch -m cleanprior train method=...``."""

from .cli import main

main()
