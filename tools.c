/* tools.c - ./vit: what needs no GPU. */
#include "util.h"

int main(int argc, char **argv)
{
    (void)argv;
    die_usage("./vit index | shard | show", "%d arguments name no command", argc - 1);
}
