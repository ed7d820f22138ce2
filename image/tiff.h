/* tiff.h - TIFF files in parts, where libtiff is there. */
#pragma once

#include "image/parts.h"

extern const PartReader tiff_reader;
