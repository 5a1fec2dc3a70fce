"""``python -m vlmoe`` is the command ``vlmoe``, for launchers and for where it is on no path."""

from vlmoe.commands import main

if __name__ == "__main__":
    main()
