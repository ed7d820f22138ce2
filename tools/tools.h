/* tools.h - the commands of ./vit that have a file of their own: convert.c (import, export),
 * info.c, plan.c, report.c, shard.c, show.c, top.c. */
#pragma once

#include "tools/flags.h"

extern const Command command_export, command_import, command_info, command_plan, command_report,
    command_shard, command_show, command_top;
