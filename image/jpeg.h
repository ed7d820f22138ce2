/* jpeg.h - JPEG files in parts. */
#pragma once

#include "image/parts.h"

extern const PartReader jpeg_reader;
