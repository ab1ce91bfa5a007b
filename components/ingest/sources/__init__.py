"""Sources of images: folders, zip and tar archives, parquet files, S3, Kaggle, the Hugging Face hub, stored datasets, synthetic faces."""
