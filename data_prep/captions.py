"""``vlmoe prepare captions`` as a script of a checkout."""

from vlmoe.commands import run_script

if __name__ == "__main__":
    run_script("prepare", "captions")
