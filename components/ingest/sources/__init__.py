"""Sources of images: folders, zip and tar archives, S3, Kaggle, synthetic faces."""
