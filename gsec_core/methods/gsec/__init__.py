"""GSEC, the method that this package is named after."""
