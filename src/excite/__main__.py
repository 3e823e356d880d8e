"""``python -m excite``, and so ``torchrun -m excite train ...``."""

from excite.cli import main

if __name__ == "__main__":
    main()
