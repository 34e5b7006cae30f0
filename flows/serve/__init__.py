"""`gsec serve`: a server that shows all runs, their reports, images and metrics. It reads only stores, and writes only curation, if that is allowed."""
