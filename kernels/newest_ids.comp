// The ids that a step begins with: the newest one of a slot, or the one that is given. The last slot is nobody's.
//
// newest [slot_count]; slots, given, y [count]. numpy: where(slots < slot_count - 1, newest[slots], given)

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "relay.glsl"
layout(local_size_x_id = 0) in;

void main() {
    relay_wait();
    for (uint i = gl_GlobalInvocationID.x; i < count; i += GRID_THREADS) {
        const uint slot = uint(slots.at[i]);
        y.at[i] = slot < slot_count - 1 ? newest.at[slot] : given.at[i];
    }
    relay_end();
}
