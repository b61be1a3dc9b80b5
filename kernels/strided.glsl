// Where a place of a strided iteration space lies in three arrays: STRIDED(a, b, c) defines offsets(place). Needs the
// specialization constant AXES, 1 to 5, and the push-constant fields length0 to length3 (axis 0 is the innermost; the
// outermost length is not needed) and NAME_stride0 to NAME_stride4 of each array, in elements.

#define STRIDES(A, B, C, AXIS) uvec3(A##_stride##AXIS, B##_stride##AXIS, C##_stride##AXIS)

#define INNER_AXIS(A, B, C, AXIS)                                        \
    if (AXES == AXIS + 1) return offset + place * STRIDES(A, B, C, AXIS); \
    outer = place / length##AXIS;                                        \
    offset += (place - outer * length##AXIS) * STRIDES(A, B, C, AXIS);   \
    place = outer;

#define STRIDED(A, B, C)                             \
    uvec3 offsets(uint place) {                      \
        uvec3 offset = uvec3(0);                     \
        uint outer;                                  \
        INNER_AXIS(A, B, C, 0)                       \
        INNER_AXIS(A, B, C, 1)                       \
        INNER_AXIS(A, B, C, 2)                       \
        INNER_AXIS(A, B, C, 3)                       \
        return offset + place * STRIDES(A, B, C, 4); \
    }
