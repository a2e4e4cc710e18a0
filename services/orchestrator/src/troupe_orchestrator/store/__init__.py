"""Metadata in SQL, trees and batches as Parquet."""
