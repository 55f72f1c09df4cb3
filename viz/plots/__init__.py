"""One function a picture, drawn from a result's table."""
