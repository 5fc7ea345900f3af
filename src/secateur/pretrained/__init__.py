"""Folders of transformers' models that were made smaller: written so that they open again, and opened"""
