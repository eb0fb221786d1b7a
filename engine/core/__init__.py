"""Where a model is put together (`build.py`) and run (`loop.py`)."""
