// Reading and writing VECTOR elements at a time, 4 or 1, as a vec4 of which one element uses .x only. With 4, the array
// starts at a multiple of its four elements' bytes, and so does `index` within it. Include after kernel.glsl, which
// declares VECTOR.
//
// load_f32(array, index) and store_f32(array, index, value) are for arrays of f32, load_T and store_T for those of T,
// load_R and store_R for those of R.

// The part of a value that is in use.
vec4 used(vec4 value) {
    return VECTOR == 4 ? value : vec4(value.x, 0.0, 0.0, 0.0);
}

// The places of a flat array: VECTOR elements each, and one each for what they leave over at the end.
uint place_count(uint count) {
    return count / VECTOR + count % VECTOR;
}

// The first element of a place; `whole` is whether it has VECTOR elements.
uint place_start(uint place, uint count, out bool whole) {
    uint vectors = count / VECTOR;
    whole = place < vectors;
    return whole ? place * VECTOR : vectors * VECTOR + (place - vectors);
}

#define VECTOR_ACCESS(TYPE)                                                             \
    vec4 load_##TYPE(TYPE##_buffer from, uint index, bool whole) {                      \
        if (VECTOR == 4 && whole) {                                                     \
            return load(TYPE##x4_buffer(from).at[index / 4]);                           \
        }                                                                               \
        return vec4(load(from.at[index]), 0.0, 0.0, 0.0);                               \
    }                                                                                   \
    vec4 load_##TYPE(TYPE##_buffer from, uint index) {                                  \
        return load_##TYPE(from, index, true);                                          \
    }                                                                                   \
    void store_##TYPE(TYPE##_buffer to, uint index, vec4 value, bool whole) {           \
        if (VECTOR == 4 && whole) {                                                     \
            store(TYPE##x4_buffer(to).at[index / 4], value);                            \
        } else {                                                                        \
            store(to.at[index], value.x);                                               \
        }                                                                               \
    }                                                                                   \
    void store_##TYPE(TYPE##_buffer to, uint index, vec4 value) {                       \
        store_##TYPE(to, index, value, true);                                           \
    }

VECTOR_ACCESS(f32)
#ifdef SIXTEEN_BITS
VECTOR_ACCESS(f16)
VECTOR_ACCESS(bf16)
#endif

#define load_T JOIN(load_, T)
#define store_T JOIN(store_, T)
#define load_R JOIN(load_, R)
#define store_R JOIN(store_, R)
