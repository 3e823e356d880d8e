"""Entry point of ``python -m excite``, and thus of ``torchrun -m excite train ...``."""

from excite.cli import main

if __name__ == "__main__":
    main()
