"""Types and shapes are checked in every test, doctests in `src` included."""

import shapes  # pyright: ignore[reportMissingImports]

shapes.install()  # before anything of triskel is imported
