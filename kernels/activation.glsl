// Activations and their derivatives. KIND, a specialization constant, is the place of the activation, or of that which
// a gated one applies to its gate, in this list: gelu, gelu_exact, relu, relu2, silu.

const float GELU_SCALE = 0.7978845608028654;  // sqrt(2 / pi)
const float GELU_CUBIC = 0.044715;

// x * the logistic function is silu; (1 + tanh(x / 2)) / 2 cannot overflow.
float sigmoid(float x) {
    return 0.5 + 0.5 * accurate_tanh(0.5 * x);
}

float activate(uint kind, float x) {
    switch (kind) {
    case 0:
        return x * (0.5 + 0.5 * accurate_tanh(GELU_SCALE * x * (1.0 + GELU_CUBIC * x * x)));
    case 1:
        return x * (0.5 + 0.5 * accurate_erf(0.7071067811865476 * x));
    case 2:
        return max(x, 0.0);
    case 3:
        return max(x, 0.0) * max(x, 0.0);
    default:
        return x * sigmoid(x);
    }
}

float activation_slope(uint kind, float x) {
    switch (kind) {
    case 0: {
        float tanh_inner = accurate_tanh(GELU_SCALE * x * (1.0 + GELU_CUBIC * x * x));
        float inner_slope = GELU_SCALE * (1.0 + 3.0 * GELU_CUBIC * x * x);
        return 0.5 + 0.5 * tanh_inner + 0.5 * x * (1.0 - tanh_inner * tanh_inner) * inner_slope;
    }
    case 1:
        return 0.5 + 0.5 * accurate_erf(0.7071067811865476 * x) + x * 0.3989422804014327 * accurate_exp(-0.5 * x * x);
    case 2:
        return x > 0.0 ? 1.0 : 0.0;
    case 3:
        return 2.0 * max(x, 0.0);
    default: {
        float s = sigmoid(x);
        return s + x * s * (1.0 - s);
    }
    }
}

vec4 activate(uint kind, vec4 x) {
    return vec4(activate(kind, x.x), activate(kind, x.y), activate(kind, x.z), activate(kind, x.w));
}

vec4 activation_slope(uint kind, vec4 x) {
    return vec4(
        activation_slope(kind, x.x), activation_slope(kind, x.y), activation_slope(kind, x.z), activation_slope(kind, x.w)
    );
}
