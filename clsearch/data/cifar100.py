"""CIFAR-100: small colour photographs of a hundred kinds of things."""

from __future__ import annotations

from typing import ClassVar

from clsearch.data._cifar import CifarSource


class Cifar100(CifarSource):
    """50,000 training and 10,000 test images 32x32 of a hundred classes (Krizhevsky 2009).

    Read from the set's binary version, `cifar-100-binary`; labels are the fine ones.
    """

    name: ClassVar[str] = "cifar100"
    licence: ClassVar[str] = "none stated; the report is to be cited"
    folder: ClassVar[str] = "cifar-100-binary"
    archive: ClassVar[str] = "cifar-100-binary.tar.gz"
    md5: ClassVar[str] = "03b5dce01913d631647c71ecec9e9cb8"
    train_files: ClassVar[tuple[str, ...]] = ("train.bin",)
    test_files: ClassVar[tuple[str, ...]] = ("test.bin",)
    names_file: ClassVar[str] = "fine_label_names.txt"
    label_bytes: ClassVar[int] = 2
    classes: ClassVar[int] = 100
