"""How glibc keeps the memory of a process that computes with tensors: settings that it reads when the process starts.

Ranks of trainings and evaluations have them, and the process of `celebdit serve`. Promises: they change no number; in a process that this
program starts, a value of the user's own comes first.
"""

HEAP = {
    # By default glibc gives the memory of a step's tensors back to the system, which then clears each page again: 4 % of a step of `demo`.
    "MALLOC_MMAP_THRESHOLD_": str(2**25),  # the most that every version of glibc accepts
    "MALLOC_TRIM_THRESHOLD_": str(2**29),
    "MALLOC_TOP_PAD_": str(2**26),
    # Pages of 2 MB where Linux gives them to who asks ("madvise"), from glibc 2.35: a step of `demo` takes 9 % less, a network call 11 %.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1",
}
