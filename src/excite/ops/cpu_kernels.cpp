// The passes of batch norm + gate + addition + activation over the large maps, for CPUs.
//
// Letters: N images, P positions (H * W), C channels.
// Every map is (N, P, C), that is channels-last and dense, of float or bfloat16; sums are float32 inside a chunk
// of an image and double over chunks. How an image is cut into chunks depends on its shape alone, so results do
// not depend on the number of threads. No -ffast-math: NaN and Inf come through as they do in PyTorch.
//
// Compiled and loaded by excite/ops/native.py; the algebra around these passes is in excite/ops/gated_norm.py.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <new>
#include <vector>

namespace {

struct bf16 {
    uint16_t bits;
};

inline float load(float x) { return x; }
inline float load(bf16 x) {
    uint32_t wide = uint32_t(x.bits) << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}
inline void store(float* to, float x) { *to = x; }
inline void store(bf16* to, float x) {  // round to nearest even; a NaN stays one
    uint32_t wide;
    std::memcpy(&wide, &x, 4);
    uint32_t rounded = (wide + 0x7fff + ((wide >> 16) & 1)) >> 16;
    to->bits = x != x ? uint16_t(0x7fc0) : uint16_t(rounded);
}

template <class T>
inline float rounded(float x) {
    T stored;
    store(&stored, x);
    return load(stored);
}

using i64 = int64_t;

// How one image is walked: `rows` steps of `width` neighbours that share no coefficient. Narrow channels-last maps take
// several positions at a time, so that a vector register is full; their coefficients are then repeated.
struct Shape {
    i64 n, p, c;
    i64 repeat() const { return c < 128 ? std::max<i64>(1, std::min<i64>(256 / c, p)) : 1; }
    i64 chunks() const { return std::max<i64>(1, std::min(p, (p * c + 65535) / 65536)); }  // of about 64 Ki elements
    i64 first(i64 chunk) const { return p * chunk / chunks(); }  // position
};

struct Sums {
    float *a, *b, *c;
};

// What is added to the branch: nothing, a map as it is, or one that is normalised in passing (a projection's).
enum Add { NONE = 0, PLAIN = 1, NORMED = 2 };

// The activation at the end; the numbers are those of excite/ops/activations.py. All but ReLU are a Curve.
enum Act { LINEAR = 0, RELU = 1, RELU6 = 2, SILU = 3, GELU = 4, HARD_SWISH = 5 };

// What the derivative of the activation comes from: nothing, there is none (or the gradient is that of its input); the
// output of a ReLU; or the input, which is computed anew, of a ReLU or of a curve.
enum Mask { OPEN = 0, OUTPUT = 1, RECOMPUTE = 2, CURVE = 3 };

// --- activations: as PyTorch has them, also at their corners and for NaN ---------------------------------------------

// exp in float32: x = n ln 2 + r, and a minimax polynomial for |r| <= ln(2) / 2 (relative error 2e-9 before rounding).
// Written out, since the standard library's is called for one value at a time.
inline float exponential(float x) {
    float n = (x * 1.44269504f + 12582912.0f) - 12582912.0f;  // rounded to an integer
    float r = (x - n * 0.693359375f) + n * 2.12194440e-4f;
    float p = 0.00139411084f;
    p = p * r + 0.0083751264f, p = p * r + 0.0416663529f, p = p * r + 0.166664155f;
    p = p * r + 0.500000005f, p = p * r + 1.00000004f, p = p * r + 1.0f;
    float inside = x > -87.0f && x < 88.0f ? n : 0.0f;
    int32_t bits = (int32_t(inside) + 127) << 23;
    float power;
    std::memcpy(&power, &bits, 4);
    p *= power;
    p = x <= -87.0f ? 0.0f : p;
    return x >= 88.0f ? INFINITY : p;  // NaN stays
}

inline float sigmoid(float z) { return 1.0f / (1.0f + exponential(-z)); }

struct Normal {
    float distribution, density;  // P(Z <= z), and its derivative
};

// The tail P(Z > a), a >= 0, is exp(-a^2 / 2) t p(t) with t = 1 / (1 + 0.28 a) and a minimax polynomial p (relative error
// 5e-7), so that small values of GELU are as exact as large ones.
inline Normal normal(float z) {
    float a = z < 0.0f ? -z : z, t = 1.0f / (1.0f + 0.28f * a), e = exponential(-0.5f * z * z);
    float p = 0.0261485097f;
    p = p * t - 0.099127217f, p = p * t + 0.101123454f, p = p * t - 0.0135513227f, p = p * t + 0.0759828482f;
    p = p * t + 0.0828455456f, p = p * t + 0.103178833f, p = p * t + 0.111695515f, p = p * t + 0.111703889f;
    float tail = e * t * p;
    return Normal{z < 0.0f ? tail : 1.0f - tail, e * 0.398942280f};
}

template <Act ACT>
inline float activated(float z) {
    if (ACT == RELU6) return z < 0.0f ? 0.0f : z > 6.0f ? 6.0f : z;
    if (ACT == SILU) return z * sigmoid(z);
    if (ACT == GELU) return z * normal(z).distribution;
    return z * (z < -3.0f ? 0.0f : z > 3.0f ? 6.0f : z + 3.0f) * (1.0f / 6.0f);
}

// g times the derivative at z.
template <Act ACT>
inline float differentiated(float g, float z) {
    if (ACT == RELU6) return z <= 0.0f || z >= 6.0f ? 0.0f : g;
    if (ACT == SILU) {
        float s = sigmoid(z);
        return g * s * (1.0f + z * (1.0f - s));
    }
    if (ACT == GELU) {
        Normal n = normal(z);
        return g * (n.distribution + z * n.density);
    }
    return z <= -3.0f ? 0.0f : z < 3.0f ? g * (z * (1.0f / 3.0f) + 0.5f) : g;
}

// An activation as two loops over a short buffer: compiled once for all passes, since these are long formulas.
struct Curve {
    void (*activate)(float* z, int64_t count);
    void (*differentiate)(float* g, const float* z, int64_t count);
};

template <Act ACT>
constexpr Curve curve() {
    return Curve{[](float* z, int64_t count) {
#pragma omp simd
                     for (int64_t i = 0; i < count; ++i) z[i] = activated<ACT>(z[i]);
                 },
                 [](float* g, const float* z, int64_t count) {
#pragma omp simd
                     for (int64_t i = 0; i < count; ++i) g[i] = differentiated<ACT>(g[i], z[i]);
                 }};
}

constexpr Curve CURVES[] = {{}, {}, curve<RELU6>(), curve<SILU>(), curve<GELU>(), curve<HARD_SWISH>()};

// Cache-line aligned, so that no vector of sums or coefficients straddles two lines.
template <class T>
struct Aligned {
    using value_type = T;
    Aligned() = default;
    template <class U>
    Aligned(const Aligned<U>&) {}
    T* allocate(size_t n) { return static_cast<T*>(::operator new(n * sizeof(T), std::align_val_t(64))); }
    void deallocate(T* p, size_t) { ::operator delete(p, std::align_val_t(64)); }
    bool operator==(const Aligned&) const { return true; }
    bool operator!=(const Aligned&) const { return false; }
};
inline int64_t line(int64_t floats) { return (floats + 15) / 16 * 16; }
using Floats = std::vector<float, Aligned<float>>;

Floats repeated(const float* values, i64 c, i64 times) {
    Floats out(c * times);
    for (i64 t = 0; t < times; ++t) std::copy(values, values + c, out.begin() + t * c);
    return out;
}

// --- one row of `width` neighbours, coefficients beside them ----------------------------------------------------------

// One row after the other: reading several at a time halves the speed, the prefetcher loses track. Wide rows go in
// blocks whose sums and coefficients stay in the first-level cache.
constexpr i64 BLOCK = 1024;

template <class T>
void rows_moments(const T* y, i64 rows, i64 width, const float* shift, Sums s) {
    for (i64 start = 0; start < width; start += BLOCK) {
        i64 end = std::min(start + BLOCK, width);
        for (i64 r = 0; r < rows; ++r) {
            const T* row = y + r * width;
#pragma omp simd
            for (i64 i = start; i < end; ++i) {
                float x = load(row[i]) - shift[i];
                s.a[i] += x;
                s.b[i] += x * x;
            }
        }
    }
}

struct Affine {
    const float *mean, *scale, *bias;
};

// z of neighbour i, before the activation. `of_add`: mean and scale of what is added; its bias is in f.bias.
template <Add ADD, class T>
inline float before_act(const T* y, const T* add, i64 i, Affine f, Affine of_add) {
    float z = (load(y[i]) - f.mean[i]) * f.scale[i] + f.bias[i];
    if (ADD == PLAIN) z += load(add[i]);
    if (ADD == NORMED) z += (load(add[i]) - of_add.mean[i]) * of_add.scale[i];
    return z;
}

template <Add ADD, bool RELU, class T>
void rows_apply(const T* y, const T* add, T* out, i64 rows, i64 width, Affine f, Affine of_add) {
    for (i64 r = 0; r < rows; ++r) {
        const T *y0 = y + r * width, *d0 = ADD == NONE ? nullptr : add + r * width;
        T* o0 = out + r * width;
#pragma omp simd
        for (i64 i = 0; i < width; ++i) {
            float v = before_act<ADD>(y0, d0, i, f, of_add);
            if (RELU) v = v < 0.0f ? 0.0f : v;
            store(o0 + i, v);
        }
    }
}

template <Add ADD, class T>
void rows_apply_curve(const T* y, const T* add, T* out, i64 rows, i64 width, Affine f, Affine of_add, Curve curve) {
    alignas(64) float z[BLOCK];
    for (i64 r = 0; r < rows; ++r) {
        for (i64 start = 0; start < width; start += BLOCK) {
            i64 end = std::min(start + BLOCK, width), a = r * width;
#pragma omp simd
            for (i64 i = start; i < end; ++i) {
                z[i - start] = before_act<ADD>(y + a, ADD == NONE ? add : add + a, i, f, of_add);
            }
            curve.activate(z, end - start);
#pragma omp simd
            for (i64 i = start; i < end; ++i) store(out + a + i, z[i - start]);
        }
    }
}

inline float relu_gradient(float grad, float out) { return out <= 0.0f ? 0.0f : grad; }

template <Mask MASK, class T>
inline float masked(const T* grad, const T* out, const T* y, i64 i, Affine f) {
    float g = load(grad[i]);
    if (MASK == OUTPUT) return relu_gradient(g, load(out[i]));
    if (MASK == RECOMPUTE) return relu_gradient(g, before_act<NONE>(y, y, i, f, Affine{}));
    return g;
}

// The gradient of a curve's input, of the neighbours start to end.
template <Add ADD, class T>
void before_curve(const T* grad, const T* y, const T* add, i64 start, i64 end, Affine f, Affine of_add, Curve curve,
                  float* g) {
    alignas(64) float z[BLOCK];
#pragma omp simd
    for (i64 i = start; i < end; ++i) {
        z[i - start] = before_act<ADD>(y, add, i, f, of_add);
        g[i - start] = load(grad[i]);
    }
    curve.differentiate(g, z, end - start);
}

// With a normalised shortcut, s.c gets the sums of g * (add - its mean).
template <Mask MASK, bool WRITE, Add ADD, class T>
void rows_grad_sums(const T* grad, const T* out, const T* y, const T* add, T* g_out, i64 rows, i64 width, Affine f,
                    Affine of_add, Curve curve, Sums s) {
    alignas(64) float gradients[BLOCK];
    for (i64 start = 0; start < width; start += BLOCK) {
        i64 end = std::min(start + BLOCK, width);
        for (i64 r = 0; r < rows; ++r) {
            i64 a = r * width;
            if (MASK == CURVE) before_curve<ADD>(grad + a, y + a, add + a, start, end, f, of_add, curve, gradients);
#pragma omp simd
            for (i64 i = start; i < end; ++i) {
                float g = MASK == CURVE ? gradients[i - start] : masked<MASK>(grad + a, out + a, y + a, i, f);
                if (MASK == CURVE && WRITE) g = rounded<T>(g);  // the sums must be those of what the second pass reads
                s.a[i] += g;
                s.b[i] += g * (load(y[a + i]) - f.mean[i]);
                if (ADD == NORMED) s.c[i] += g * (load(add[a + i]) - of_add.mean[i]);
                if (WRITE) store(g_out + a + i, g);
            }
        }
    }
}

template <Mask MASK, class T>
void rows_grad_input(const T* grad, const T* y, T* dy, i64 rows, i64 width, Affine f, const float* slope,
                     const float* offset, Curve curve) {
    alignas(64) float gradients[BLOCK];
    for (i64 r = 0; r < rows; ++r) {
        i64 a = r * width;
        for (i64 start = 0; start < width; start += BLOCK) {
            i64 end = std::min(start + BLOCK, width);
            if (MASK == CURVE) before_curve<NONE>(grad + a, y + a, y, start, end, f, Affine{}, curve, gradients);
#pragma omp simd
            for (i64 i = start; i < end; ++i) {
                float g = MASK == CURVE ? gradients[i - start] : masked<MASK>(grad + a, y, y + a, i, f);
                store(dy + a + i, g * f.scale[i] + (load(y[a + i]) - f.mean[i]) * slope[i] + offset[i]);
            }
        }
    }
}

// --- walking chunks -----------------------------------------------------------------------------------------------

// Calls body(n, chunk) for all, in parallel.
template <class F>
void for_chunks(const Shape& s, int threads, F body) {
    i64 chunks = s.chunks(), tasks = s.n * chunks;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 t = 0; t < tasks; ++t) body(t / chunks, t % chunks);
}

// A map's normalisation and gate: z = (y - mean) * scale + squeezed, out = z * s. mean, squeezed and s are (N, C), scale
// (C); s may be absent, and is 1 then.
struct Gated {
    const float *mean, *scale, *squeezed, *s;
};

// Coefficients of one image, one beside the other and repeated for wide rows: K arrays made by fill(c, values).
template <int K>
struct Coefficients {
    Floats store;
    i64 width;
    template <class F>
    Coefficients(const Shape& s, F fill) : store(K * line(s.c * s.repeat())), width(line(s.c * s.repeat())) {
        for (i64 c = 0; c < s.c; ++c) {
            float values[K];
            fill(c, values);
            for (int k = 0; k < K; ++k) store[k * width + c] = values[k];
        }
        for (int k = 0; k < K; ++k)
            for (i64 t = 1; t < s.repeat(); ++t)
                std::copy_n(store.begin() + k * width, s.c, store.begin() + k * width + t * s.c);
    }
    const float* at(int k) const { return store.data() + k * width; }
    Affine affine() const { return Affine{at(0), at(1), at(2)}; }
};

void fill_affine(const Gated& f, i64 at, i64 c, float* values) {
    float s = f.s == nullptr ? 1.0f : f.s[at];
    values[0] = f.mean[at], values[1] = f.scale[c] * s, values[2] = f.squeezed[at] * s;
}

// Runs rows(first element, rows, width, coefficient index) over one chunk: first with wide rows, then what is left over.
template <class F>
void walk(const Shape& s, i64 n, i64 chunk, F rows) {
    i64 lo = s.first(chunk), hi = s.first(chunk + 1), base = n * s.p * s.c;
    i64 q = s.repeat(), wide = (hi - lo) / q;
    if (wide) rows(base + lo * s.c, wide, q * s.c);
    i64 left = (hi - lo) - wide * q;
    if (left) rows(base + (lo + wide * q) * s.c, left, s.c);
}

// Folds the repeated partial sums of wide rows into the first C.
void fold(float* sums, i64 c, i64 times) {
    for (i64 t = 1; t < times; ++t)
        for (i64 i = 0; i < c; ++i) sums[i] += sums[t * c + i];
}

template <class T>
void moments(const Shape& s, const T* y, float* mean, float* variance, int threads) {
    i64 chunks = s.chunks();
    Floats parts(s.n * chunks * 2 * s.c);
    for_chunks(s, threads, [&](i64 n, i64 chunk) {
        i64 q = s.repeat(), lo = s.first(chunk), count = s.first(chunk + 1) - lo;
        Floats shift(s.c), sums(2 * line(s.c * q));
        const T* start = y + (n * s.p + lo) * s.c;
        for (i64 c = 0; c < s.c; ++c) shift[c] = load(start[c]);
        Floats wide = repeated(shift.data(), s.c, q);
        Sums part{sums.data(), sums.data() + line(s.c * q), nullptr};
        walk(s, n, chunk, [&](i64 at, i64 rows, i64 width) { rows_moments(y + at, rows, width, wide.data(), part); });
        fold(part.a, s.c, q), fold(part.b, s.c, q);
        float* out = parts.data() + (n * chunks + chunk) * 2 * s.c;
        float share = 1.0f / float(count);
#pragma omp simd
        for (i64 c = 0; c < s.c; ++c) {
            float m = part.a[c] * share;
            out[c] = shift[c] + m;
            out[s.c + c] = part.b[c] - part.a[c] * m;  // sum of squared distances from the chunk's mean
        }
    });
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 n = 0; n < s.n; ++n) {  // merging moments of parts (Chan, Golub & LeVeque 1979)
        std::vector<double> m(s.c), m2(s.c);
        const float* part = parts.data() + n * chunks * 2 * s.c;
        for (i64 k = 0; k < chunks; ++k) {
            double share = double(s.first(k + 1) - s.first(k)) / double(s.p);
            for (i64 c = 0; c < s.c; ++c) m[c] += share * part[k * 2 * s.c + c];
        }
        for (i64 k = 0; k < chunks; ++k) {
            double count = double(s.first(k + 1) - s.first(k));
            for (i64 c = 0; c < s.c; ++c) {
                double delta = part[k * 2 * s.c + c] - m[c];
                m2[c] += part[(k * 2 + 1) * s.c + c] + count * delta * delta;
            }
        }
        double share = 1.0 / double(s.p);
        for (i64 c = 0; c < s.c; ++c) {
            double v = m2[c] * share;
            mean[n * s.c + c] = float(m[c]);
            variance[n * s.c + c] = v < 0 ? 0.0f : float(v);
        }
    }
}

// Everything batch norm and gate need of y: per image and channel mean and squeeze, per channel mean, rstd and scale.
template <class T>
void statistics(const Shape& s, const T* y, const float* gamma, const float* beta, float eps, float momentum,
                float* running_mean, float* running_var, float* mean, float* squeezed, float* batch_mean, float* rstd,
                float* scale, int threads) {
    moments(s, y, mean, squeezed, threads);  // the variances, for now
    std::vector<double> m(s.c), v(s.c);
    double share = 1.0 / double(s.n), count = double(s.n) * double(s.p);
    for (i64 n = 0; n < s.n; ++n)
        for (i64 c = 0; c < s.c; ++c) m[c] += share * mean[n * s.c + c];
    for (i64 n = 0; n < s.n; ++n)
        for (i64 c = 0; c < s.c; ++c) {
            double delta = mean[n * s.c + c] - m[c];
            v[c] += share * (squeezed[n * s.c + c] + delta * delta);
        }
    for (i64 c = 0; c < s.c; ++c) {
        batch_mean[c] = float(m[c]);
        rstd[c] = float(1.0 / std::sqrt(v[c] + double(eps)));
        scale[c] = gamma[c] * rstd[c];
        if (running_mean != nullptr) {
            running_mean[c] += momentum * (batch_mean[c] - running_mean[c]);
            running_var[c] += momentum * (float(v[c] * (count / (count - 1.0))) - running_var[c]);
        }
    }
    for (i64 n = 0; n < s.n; ++n)
        for (i64 c = 0; c < s.c; ++c)
            squeezed[n * s.c + c] = (mean[n * s.c + c] - batch_mean[c]) * scale[c] + beta[c];
}

// Coefficients of z = (y - mean) * scale + bias + (add - mean of add) * scale of add, in this order: 3, or 5 of them.
template <Add ADD>
Coefficients<ADD == NORMED ? 5 : 3> affine_of(const Shape& s, i64 n, Gated f, Gated f_add) {
    return Coefficients<ADD == NORMED ? 5 : 3>(s, [&](i64 c, float* values) {
        fill_affine(f, n * s.c + c, c, values);
        if (ADD == NORMED) {
            float of_add[3];
            fill_affine(f_add, n * s.c + c, c, of_add);
            values[2] += of_add[2], values[3] = of_add[0], values[4] = of_add[1];
        }
    });
}

template <Add ADD, int K>
Affine of_add(const Coefficients<K>& k) {
    return ADD == NORMED ? Affine{k.at(3), k.at(4), nullptr} : Affine{};
}

template <Add ADD, Act ACT, class T>
void apply(const Shape& s, const T* y, Gated f, const T* add, Gated f_add, Curve curve, T* out, int threads) {
    for_chunks(s, threads, [&](i64 n, i64 chunk) {
        auto k = affine_of<ADD>(s, n, f, f_add);
        walk(s, n, chunk, [&](i64 at, i64 rows, i64 width) {
            const T* d = ADD == NONE ? add : add + at;
            if (ACT == LINEAR || ACT == RELU) {
                rows_apply<ADD, ACT == RELU>(y + at, d, out + at, rows, width, k.affine(), of_add<ADD>(k));
            } else {
                rows_apply_curve<ADD>(y + at, d, out + at, rows, width, k.affine(), of_add<ADD>(k), curve);
            }
        });
    });
}

// `sums`: of g (N, C); of g * (y - mean) (N, C); where there is a gate, the gradient of s (N, C); where there is a
// normalised shortcut, the sums of g * (add - its mean) (N, C).
template <Mask MASK, bool WRITE, Add ADD, class T>
void grad_sums(const Shape& s, const T* grad, const T* out, const T* y, Gated f, const T* add, Gated f_add,
               Curve curve, T* g, float* sums, int threads) {
    constexpr int K = ADD == NORMED ? 3 : 2;
    i64 chunks = s.chunks();
    Floats parts(s.n * chunks * K * s.c);
    for_chunks(s, threads, [&](i64 n, i64 chunk) {
        auto k = affine_of<ADD>(s, n, f, f_add);
        Floats wide(K * k.width);
        Sums part{wide.data(), wide.data() + k.width, K == 3 ? wide.data() + 2 * k.width : nullptr};
        walk(s, n, chunk, [&](i64 at, i64 rows, i64 width) {
            const T *o = MASK == OUTPUT ? out + at : y, *d = ADD == NONE ? y : add + at;
            T* to = WRITE ? g + at : g;
            rows_grad_sums<MASK, WRITE, ADD>(grad + at, o, y + at, d, to, rows, width, k.affine(), of_add<ADD>(k), curve,
                                             part);
        });
        float* to = parts.data() + (n * chunks + chunk) * K * s.c;
        for (int j = 0; j < K; ++j) {
            float* from = wide.data() + j * k.width;
            fold(from, s.c, s.repeat());
            std::copy(from, from + s.c, to + j * s.c);
        }
    });
    i64 nc = s.n * s.c;
    float *sum_g = sums, *sum_gy = sums + nc, *grad_s = sums + 2 * nc, *sum_ga = sums + (f.s == nullptr ? 2 : 3) * nc;
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 n = 0; n < s.n; ++n) {
        std::vector<double> total(K * s.c);
        for (i64 k = 0; k < chunks; ++k) {
            const float* part = parts.data() + (n * chunks + k) * K * s.c;
            for (i64 c = 0; c < K * s.c; ++c) total[c] += part[c];
        }
        for (i64 c = 0; c < s.c; ++c) {
            i64 at = n * s.c + c;
            sum_g[at] = float(total[c]), sum_gy[at] = float(total[s.c + c]);
            if (f.s != nullptr) grad_s[at] = f.scale[c] * sum_gy[at] + f.squeezed[at] * sum_g[at];
            if (K == 3) sum_ga[at] = float(total[2 * s.c + c]);
        }
    }
}

// Gradients of gamma, beta and y, given those sums and the gradient of the squeeze (through the gate alone; may be null).
// `means` (2, C): where the statistics are those of several processes, the gradients of gamma and beta, added up over all
// processes and divided by the number of values per channel; gamma's and beta's own are left alone then.
template <Mask MASK, class T>
void grad_input(const Shape& s, const T* grad, const T* y, Gated f, const float* batch_mean,
                const float* rstd, const float* sum_g, const float* sum_gy, const float* grad_squeezed,
                const float* means, float* grad_gamma, float* grad_beta, Curve curve, T* dy, int threads) {
    std::vector<double> gamma(s.c), beta(s.c);
    for (i64 n = 0; n < s.n && means == nullptr; ++n)
        for (i64 c = 0; c < s.c; ++c) {
            i64 at = n * s.c + c;
            float centred = (f.mean[at] - batch_mean[c]) * rstd[c], gate = f.s == nullptr ? 1.0f : f.s[at];
            float dq = grad_squeezed == nullptr ? 0.0f : grad_squeezed[at];
            beta[c] += gate * sum_g[at] + dq;
            gamma[c] += gate * (rstd[c] * sum_gy[at] + centred * sum_g[at]) + dq * centred;
        }
    Floats mean_gamma(s.c), mean_beta(s.c);
    double all = 1.0 / (double(s.n) * double(s.p));
    for (i64 c = 0; c < s.c; ++c) {
        if (means == nullptr) {
            grad_gamma[c] = float(gamma[c]), grad_beta[c] = float(beta[c]);
            mean_gamma[c] = float(gamma[c] * all), mean_beta[c] = float(beta[c] * all);
        } else {
            mean_gamma[c] = means[c], mean_beta[c] = means[s.c + c];
        }
    }
    if (dy == nullptr) return;
    float each = 1.0f / float(s.p);
    for_chunks(s, threads, [&](i64 n, i64 chunk) {
        Coefficients<5> k(s, [&](i64 c, float* values) {
            i64 at = n * s.c + c;
            fill_affine(f, at, c, values);
            float centred = (f.mean[at] - batch_mean[c]) * rstd[c];
            float dq = grad_squeezed == nullptr ? 0.0f : grad_squeezed[at];
            values[3] = -f.scale[c] * rstd[c] * mean_gamma[c];
            values[4] = f.scale[c] * (dq * each - mean_beta[c] - centred * mean_gamma[c]);
        });
        walk(s, n, chunk, [&](i64 at, i64 rows, i64 width) {
            rows_grad_input<MASK>(grad + at, y + at, dy + at, rows, width, k.affine(), k.at(3), k.at(4), curve);
        });
    });
}

// --- Gather-Excite with a kernel of the map's size ------------------------------------------------------------------

// sums (N, C) of y * weight over positions; weight is (P, C).
template <class T>
void gather(const Shape& s, const T* y, const float* weight, float* sums, int threads) {
    i64 chunks = s.chunks();
    Floats parts(s.n * chunks * s.c);
    for_chunks(s, threads, [&](i64 n, i64 chunk) {
        Floats part(s.c * s.repeat());
        walk(s, n, chunk, [&](i64 at, i64 rows, i64 width) {
            const float* w = weight + (at - n * s.p * s.c);
            for (i64 start = 0; start < width; start += BLOCK) {
                i64 end = std::min(start + BLOCK, width);
                for (i64 r = 0; r < rows; ++r) {
#pragma omp simd
                    for (i64 i = start; i < end; ++i) part[i] += load(y[at + r * width + i]) * w[r * width + i];
                }
            }
        });
        fold(part.data(), s.c, s.repeat());
        std::copy_n(part.begin(), s.c, parts.begin() + (n * chunks + chunk) * s.c);
    });
    for (i64 n = 0; n < s.n; ++n)
        for (i64 c = 0; c < s.c; ++c) {
            double sum = 0;
            for (i64 k = 0; k < chunks; ++k) sum += parts[(n * chunks + k) * s.c + c];
            sums[n * s.c + c] = float(sum);
        }
}

// Gradients of the weight, summed over images, and of y, each where it is wanted.
template <class T>
void gather_grad(const Shape& s, const float* grad, const T* y, const float* weight, float* grad_weight, T* dy,
                 int threads) {
    auto repeat_grad = [&](i64 n) {
        return Coefficients<1>(s, [&](i64 c, float* values) { values[0] = grad[n * s.c + c]; });
    };
    if (dy != nullptr) {
        for_chunks(s, threads, [&](i64 n, i64 chunk) {
            Coefficients<1> k = repeat_grad(n);
            const float* g = k.at(0);
            walk(s, n, chunk, [&](i64 at, i64 rows, i64 width) {
                const float* w = weight + (at - n * s.p * s.c);
                for (i64 r = 0; r < rows; ++r) {
#pragma omp simd
                    for (i64 i = 0; i < width; ++i) store(dy + at + r * width + i, g[i] * w[r * width + i]);
                }
            });
        });
    }
    if (grad_weight == nullptr) return;
    // Each piece of the map belongs to one thread, which adds the images up in their order. A piece stays in the
    // second-level cache meanwhile.
    i64 pieces = std::max<i64>(1, std::min(s.p, (s.p * s.c + 16383) / 16384)), q = s.repeat();
#pragma omp parallel for num_threads(threads) schedule(static)
    for (i64 piece = 0; piece < pieces; ++piece) {
        i64 lo = s.p * piece / pieces * s.c, hi = s.p * (piece + 1) / pieces * s.c;
        std::fill(grad_weight + lo, grad_weight + hi, 0.0f);
        for (i64 n = 0; n < s.n; ++n) {
            Coefficients<1> k = repeat_grad(n);
            const float* g = k.at(0);
            const T* x = y + n * s.p * s.c;
            for (i64 start = lo; start < hi; start += q * s.c) {
                i64 width = std::min(q * s.c, hi - start);
#pragma omp simd
                for (i64 i = 0; i < width; ++i) grad_weight[start + i] += g[i] * load(x[start + i]);
            }
        }
    }
}

Gated packed(const Shape& s, const float* known, const float* gate) {
    i64 nc = s.n * s.c;
    return Gated{known, known + 2 * nc + 2 * s.c, known + nc, gate};
}

// --- storage types ------------------------------------------------------------------------------------------------

template <class F>
int with_type(int dtype, F body) {
    if (dtype == 0) return body(float()), 0;
    if (dtype == 1) return body(bf16()), 0;
    return 1;
}

bool known_act(int act) { return act >= LINEAR && act <= HARD_SWISH; }

}  // namespace

extern "C" {

// mean, variance: (N, C), variance biased.
int excite_moments(int dtype, i64 n, i64 p, i64 c, const void* y, float* mean, float* variance, int threads) {
    return with_type(dtype, [&](auto t) {
        using T = decltype(t);
        moments<T>(Shape{n, p, c}, static_cast<const T*>(y), mean, variance, threads);
    });
}

// `known` is packed: mean (N, C), squeezed (N, C), batch mean (C), rstd (C), scale (C). `sums` is packed as grad_sums says.

int excite_statistics(int dtype, i64 n, i64 p, i64 c, const void* y, const float* gamma, const float* beta, float eps,
                      float momentum, float* running_mean, float* running_var, float* known, int threads) {
    return with_type(dtype, [&](auto t) {
        using T = decltype(t);
        float *mean = known, *squeezed = mean + n * c, *batch_mean = squeezed + n * c, *rstd = batch_mean + c;
        statistics<T>(Shape{n, p, c}, static_cast<const T*>(y), gamma, beta, eps, momentum, running_mean, running_var,
                      mean, squeezed, batch_mean, rstd, rstd + c, threads);
    });
}

// out = act(((y - mean) * scale + squeezed) * s + add); s and add are optional; with known_add, add is normalised in
// passing.
int excite_apply(int dtype, i64 n, i64 p, i64 c, const void* y, const float* known, const float* s, const void* add,
                 const float* known_add, int act, void* out, int threads) {
    if (!known_act(act)) return 1;
    return with_type(dtype, [&](auto t) {
        using T = decltype(t);
        Shape shape{n, p, c};
        Gated f = packed(shape, known, s), f_add = known_add == nullptr ? Gated{} : packed(shape, known_add, nullptr);
        const T *x = static_cast<const T*>(y), *d = static_cast<const T*>(add);
        auto run = [&](auto linear, auto relu, auto curve) {
            auto kernel = act == LINEAR ? linear : act == RELU ? relu : curve;
            kernel(shape, x, f, d, f_add, CURVES[act], static_cast<T*>(out), threads);
        };
        // SILU stands for every curve.
        if (add == nullptr) run(apply<NONE, LINEAR, T>, apply<NONE, RELU, T>, apply<NONE, SILU, T>);
        else if (known_add == nullptr) run(apply<PLAIN, LINEAR, T>, apply<PLAIN, RELU, T>, apply<PLAIN, SILU, T>);
        else run(apply<NORMED, LINEAR, T>, apply<NORMED, RELU, T>, apply<NORMED, SILU, T>);
    });
}

// g, the gradient before the activation, is written out where an activation followed an addition: it is the gradient of
// what was added, too. There, a ReLU needs `out`; a curve needs what was added, as a normalised shortcut always does.
int excite_grad_sums(int dtype, i64 n, i64 p, i64 c, const void* grad, const void* out, const void* y,
                     const float* known, const float* s, const void* add, const float* known_add, int act, void* g,
                     float* sums, int threads) {
    bool curve = act != LINEAR && act != RELU;
    if (!known_act(act) || (g != nullptr && (act == LINEAR || (curve ? add : out) == nullptr))) return 1;
    return with_type(dtype, [&](auto t) {
        using T = decltype(t);
        Shape k{n, p, c};
        Gated f = packed(k, known, s), f_add = known_add == nullptr ? Gated{} : packed(k, known_add, nullptr);
        const T *d = static_cast<const T*>(grad), *o = static_cast<const T*>(out), *x = static_cast<const T*>(y);
        const T* other = static_cast<const T*>(add);
        T* to = static_cast<T*>(g);
        auto run = [&](auto kernel) { kernel(k, d, o, x, f, other, f_add, CURVES[act], to, sums, threads); };
        bool normed = known_add != nullptr;
        if (act == LINEAR) normed ? run(grad_sums<OPEN, false, NORMED, T>) : run(grad_sums<OPEN, false, NONE, T>);
        else if (curve && to == nullptr) run(grad_sums<CURVE, false, NONE, T>);
        else if (curve) normed ? run(grad_sums<CURVE, true, NORMED, T>) : run(grad_sums<CURVE, true, PLAIN, T>);
        else if (to == nullptr) run(grad_sums<RECOMPUTE, false, NONE, T>);
        else normed ? run(grad_sums<OUTPUT, true, NORMED, T>) : run(grad_sums<OUTPUT, true, NONE, T>);
    });
}

// `act`: what the gradient is still to be taken back through; nothing was added then.
int excite_grad_input(int dtype, i64 n, i64 p, i64 c, const void* grad, const void* y, const float* known,
                      const float* s, const float* sums, const float* grad_squeezed, const float* means, int act,
                      float* grad_gamma, float* grad_beta, void* dy, int threads) {
    if (!known_act(act)) return 1;
    return with_type(dtype, [&](auto t) {
        using T = decltype(t);
        Shape k{n, p, c};
        Gated f = packed(k, known, s);
        const T *d = static_cast<const T*>(grad), *x = static_cast<const T*>(y);
        const float *batch_mean = known + 2 * n * c, *rstd = batch_mean + c, *sum_gy = sums + n * c;
        auto run = [&](auto kernel) {
            kernel(k, d, x, f, batch_mean, rstd, sums, sum_gy, grad_squeezed, means, grad_gamma, grad_beta, CURVES[act],
                   static_cast<T*>(dy), threads);
        };
        if (act == LINEAR) run(grad_input<OPEN, T>);
        else if (act == RELU) run(grad_input<RECOMPUTE, T>);
        else run(grad_input<CURVE, T>);
    });
}

int excite_gather(int dtype, i64 n, i64 p, i64 c, const void* y, const float* weight, float* sums, int threads) {
    return with_type(dtype, [&](auto t) {
        using T = decltype(t);
        gather<T>(Shape{n, p, c}, static_cast<const T*>(y), weight, sums, threads);
    });
}

int excite_gather_grad(int dtype, i64 n, i64 p, i64 c, const float* grad, const void* y, const float* weight,
                       float* grad_weight, void* dy, int threads) {
    return with_type(dtype, [&](auto t) {
        using T = decltype(t);
        gather_grad<T>(Shape{n, p, c}, grad, static_cast<const T*>(y), weight, grad_weight, static_cast<T*>(dy), threads);
    });
}
}
