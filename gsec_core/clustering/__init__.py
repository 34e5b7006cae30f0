"""Estimators with scikit-learn's conventions, and their parts."""
