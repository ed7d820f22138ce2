/* tools.h - the commands of ./vit that have a file of their own: shard.c, show.c, report.c. */
#pragma once

#include "tools/flags.h"

extern const Command command_shard, command_show, command_report;
