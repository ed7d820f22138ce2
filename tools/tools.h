/* tools.h - the commands of ./vit that have a file of their own: plan.c, shard.c, show.c, top.c. */
#pragma once

#include "tools/flags.h"

extern const Command command_plan, command_shard, command_show, command_top;
