"""Serving: package a checkpoint as an MLflow model, try it over HTTP, register it, describe it for KServe."""
