// y[i, :] = table[ids[i], :].
//
// table: rows of `width` units, `stride` units apart, `rows` of them; ids: `count`; y: [count, width]. A unit, T, is four
// elements or one; only its size matters, unless WIDEN turns elements of T into the float32 numbers that they are. An id
// out of range takes the nearest row. Where there is an addend, of `addend_units` float32 units and repeated as often as
// y needs it, it is added. numpy: table[ids] + addend

#version 460
#include "common.glsl"
#include "kernel.glsl"
#include "fresh.glsl"
#include "relay.glsl"
layout(local_size_x_id = 0) in;

void main() {
    relay_wait();
    uint total = count * width;
    for (uint place = gl_GlobalInvocationID.x; place < total; place += GRID_THREADS) {
        uint i = place / width;
        uint row = uint(clamp(fresh_i32(uint64_t(ids), i), 0, int(rows) - 1));
        const JOIN(T, _value) unit = JOIN(fresh_, T)(uint64_t(table), row * stride + (place - i * width));
#if WIDEN
        JOIN(R, _value) value = floatBitsToUint(load(unit));
#else
        JOIN(T, _value) value = unit;
#endif
#if ADDEND
        if (uint64_t(addend) != 0) {
            const JOIN(R, _value) added = JOIN(fresh_, R)(uint64_t(addend), place % addend_units);
            value = floatBitsToUint(uintBitsToFloat(value) + uintBitsToFloat(added));
        }
#endif
        y.at[place] = value;
    }
    relay_end();
}
