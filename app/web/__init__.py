"""The HTTP interface of a worker, and the proxy that `holdfast up` serves in front of several."""
