"""Names of files that are images, that are not, and of folders and copies that programs leave beside them; suffixes in lower case."""

import re


def _suffixes(words: str) -> frozenset[str]:
    return frozenset(f".{word}" for word in words.split())


IMAGE_SUFFIXES = _suffixes(
    "jpg jpeg jpe jfif pjpeg png apng webp bmp dib tif tiff gif heic heif hif avif avifs jxl"
    " jp2 j2k jpx jpf ppm pgm pbm pnm qoi psd psb xcf exr"
)
"""A file of such a name is an image, or the verdict on it says what it is; other names are decided by the content."""
RAW_SUFFIXES = _suffixes("dng cr2 cr3 crw nef nrw arw srf sr2 orf rw2 raf pef srw x3f 3fr fff iiq rwl kdc mrw erf")
"""Raw files of cameras: they look like TIFF in their first bytes, and hold a small preview."""
UNREAD_SUFFIXES = {
    **dict.fromkeys(RAW_SUFFIXES, "a camera's raw file"),
    **{suffix: suffix[1:].upper() for suffix in _suffixes("tga pcx dds sgi pct pict jxr wdp hdp jng flif bpg dpx xpm xbm kra")},
}
"""Images that are not read, and most of which do not show it in their first bytes."""
OTHER_SUFFIXES = _suffixes(
    "txt md rst html htm xml json jsonl ndjson csv tsv yaml yml toml ini cfg log py pyc ipynb sh bat js css"
    " pdf doc docx xls xlsx ppt pptx odt svg eps ai ico icns url lnk db sqlite mp4 mov avi mkv m4v 3gp webm mp3"
    " wav m4a aac flac aae xmp thm thumb npy npz pt pth ckpt safetensors pkl pickle h5 hdf5 mat parquet arrow"
    " feather lmdb mdb tfrecord index cls exe dll so torrent part crdownload tmp bak lock md5 sha1 sha256 sig"
)
"""Files that are no images, whatever they hold: texts, videos, arrays, unfinished downloads."""
ARCHIVE_SUFFIXES = (".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz", ".7z", ".rar", ".zst")
OF_FINDER = "__macosx"
"""The folder that Finder adds to a zip, in lower case; it holds attributes of the files beside it."""
LEFT_BY_PROGRAMS = frozenset(
    (
        OF_FINDER,
        "@eadir",
        "@recycle",
        "@recently-snapshot",
        "@sharebin",
        "@tmp",
        "@synoeastream",
        "captureone",
        "resource frk",
        "resource.frk",
        "_vti_cnf",
        "#recycle",
        "#snapshot",
        "~snapshot",
        "$recycle.bin",
        "recycler",
        "recycled",
        "lost+found",
        "lost.dir",
        "network trash folder",
        "temporary items",
        "system volume information",
    )
)
"""Folders of thumbnails, deleted files and copies, in lower case; those whose name begins with a dot are left out too."""
FOUND_BY_CHECKS = re.compile(r"found\.\d{3}")
"""Folders of fragments that a check of a Windows disk has found, in lower case."""
PREVIEW_SUFFIXES = (".lrdata", ".cocatalog")
"""Of folders in which Lightroom and Capture One keep previews."""
LIBRARY_SUFFIXES = (".photoslibrary", ".photolibrary", ".aplibrary", ".migratedphotolibrary")
"""Of libraries of Photos, iPhoto and Aperture, in which the folders of `LIBRARY_COPIES` hold smaller copies of the others' images."""
LIBRARY_COPIES = frozenset(("resources", "thumbnails", "previews", "iphoto selection", "private", "database", "scopes", "external"))
BACKUP_SUFFIXES = ("_original", "~", ".orig")
"""Of copies that ExifTool, editors and version control leave beside an image that they changed."""
FOLDER_ICON = "Icon\r"
"""The file in which Finder keeps a folder's icon."""
