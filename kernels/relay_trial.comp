// A round of a relay that tries whether a device has relays: y = 1 + x in reverse, so that what is read was written by
// other workgroups. x, y [count]; see alpha/backend_helios_relay.py.

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "fresh.glsl"
#include "relay.glsl"
layout(local_size_x_id = 0) in;

void main() {
    relay_wait();
    const uint i = gl_GlobalInvocationID.x;
    if (i < count) y.at[i] = fresh_u32(uint64_t(x), count - 1 - i) + 1u;
    relay_end();
}
