"""The verbs of the ``mlx-bert`` command, one file each; nothing heavy is imported before arguments are parsed."""
