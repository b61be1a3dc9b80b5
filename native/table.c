/* Tables from identifiers to objects. */
#include "internal.h"

#include <stdlib.h>

uint64_t table_add(table *in, void *object) {
    if (in->first_free == 0) {
        if (in->count == in->capacity) {
            uint32_t capacity = in->capacity ? 2 * in->capacity : 64;
            struct slot *slots = realloc(in->slots, capacity * sizeof *slots);
            if (slots == NULL) return 0;
            in->slots = slots;
            in->capacity = capacity;
        }
        in->slots[in->count] = (struct slot){0};
        in->first_free = ++in->count;
    }
    uint32_t number = in->first_free - 1;
    struct slot *slot = &in->slots[number];
    in->first_free = slot->next_free;
    slot->object = object;
    slot->uses++;
    return (uint64_t)slot->uses << 32 | number;
}

void *table_find(const table *in, uint64_t identifier) {
    uint32_t number = (uint32_t)identifier;
    if (number >= in->count || in->slots[number].uses != identifier >> 32) return NULL;
    return in->slots[number].object;
}

void *table_remove(table *in, uint64_t identifier) {
    void *object = table_find(in, identifier);
    if (object != NULL) {
        struct slot *slot = &in->slots[(uint32_t)identifier];
        slot->object = NULL;
        slot->next_free = in->first_free;
        in->first_free = (uint32_t)identifier + 1;
    }
    return object;
}
