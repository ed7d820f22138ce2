/* tools.h - the commands of ./vit that have a file of their own: shard.c, show.c,
 * convert.c (import, export), info.c. */
#pragma once

#include "tools/flags.h"

extern const Command command_shard, command_show, command_import, command_export, command_info;
