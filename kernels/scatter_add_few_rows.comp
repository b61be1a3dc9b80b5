// y[v, :] = the sum of the rows x[i, :] with ids[i] = v, in the order in which they stand; for so few ids that each
// workgroup, which makes one row v, looks through all of them. As scatter_add_rows.comp, without sorting first.
//
// ids: `count`, at most MOST; x: rows of `width` units of T, four elements or one; y: [rows, width]. An id out of range goes
// to the nearest row. Where there is an addend [rows, width], it is added to y; it may be y. COLUMNS invocations take neighbouring units, and THREADS / COLUMNS of these groups share out the rows
// that are summed. numpy: add.at(y, ids, x)

#version 460
#include "common.glsl"
#include "kernel.glsl"
layout(local_size_x_id = 0) in;

#define VALUE JOIN(T, _value)
#define GROUP 16

shared uint found[THREADS];                         // of each invocation's share of the ids
shared uint group_found[(THREADS + GROUP - 1) / GROUP];
shared uint chosen[MOST];                           // the indices of the ids that are v
shared VALUE parts[THREADS];

bool is_chosen(uint i) {
    return uint(clamp(ids.at[i], 0, int(rows) - 1)) == gl_WorkGroupID.x;
}

// Fills `chosen`, in order; returns how many there are.
uint choose() {
    uint thread = gl_LocalInvocationID.x;
    uint share = (count + THREADS - 1) / THREADS;
    uint begin = min(thread * share, count);
    uint end = min(begin + share, count);
    uint own = 0;
    for (uint i = begin; i < end; ++i) own += is_chosen(i) ? 1 : 0;
    found[thread] = own;
    barrier();
    uint group = thread / GROUP;
    if (thread % GROUP == 0) {
        uint sum = 0;
        for (uint other = thread; other < min(thread + GROUP, THREADS); ++other) sum += found[other];
        group_found[group] = sum;
    }
    barrier();
    uint place = 0;
    uint total = 0;
    for (uint other = 0; other < (THREADS + GROUP - 1) / GROUP; ++other) {
        place += other < group ? group_found[other] : 0;
        total += group_found[other];
    }
    for (uint other = group * GROUP; other < thread; ++other) place += found[other];
    for (uint i = begin; own > 0 && i < end; ++i) {
        if (is_chosen(i)) chosen[place++] = i;
    }
    barrier();
    return total;
}

void main() {
    uint thread = gl_LocalInvocationID.x;
    uint total = choose();
    for (uint first = 0; first < width; first += COLUMNS) {
        uint column = first + thread % COLUMNS;
        VALUE sum = VALUE(0.0);
        if (column < width) {
            for (uint k = thread / COLUMNS; k < total; k += THREADS / COLUMNS) sum += x.at[chosen[k] * width + column];
        }
        parts[thread] = sum;
        barrier();
        if (thread < COLUMNS && column < width) {
            for (uint other = thread + COLUMNS; other < THREADS; other += COLUMNS) sum += parts[other];
            uint place = gl_WorkGroupID.x * width + column;
            y.at[place] = uint64_t(addend) != 0 ? addend.at[place] + sum : sum;
        }
        barrier();
    }
}
