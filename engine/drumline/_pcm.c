/* PCM samples to a mono waveform in one pass: the compiled twin of what drumline.pcm does for the kinds that nearly all
sample libraries are in, one or two channels of 16, 24 or 32 bits, little-endian. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define VERSION 1 /* of what drumline.pcm calls: raised with any change of arguments or results */

#if defined(__x86_64__) && defined(__GLIBC__) && defined(__GNUC__) && !defined(__clang__)
#define FOR_EACH_PROCESSOR __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define FOR_EACH_PROCESSOR
#endif

static inline float int16_at(const uint8_t *at)
{
    int16_t value;
    memcpy(&value, at, 2);
    return value * (1.0f / 32768);
}

static inline float scaled24(uint32_t high_bytes)
{
    return (float)((int32_t)high_bytes >> 8) * (1.0f / 8388608);
}

static inline float int24_at(const uint8_t *at)
{
    return scaled24((uint32_t)at[0] << 8 | (uint32_t)at[1] << 16 | (uint32_t)at[2] << 24);
}

static inline uint32_t word_at(const uint8_t *at)
{
    uint32_t word;
    memcpy(&word, at, 4);
    return word;
}

typedef struct {
    float first, second, third, fourth;
} four_samples;

/* Four samples fill three words: a loop over words becomes vectors, one over bytes does not. */
static inline four_samples four_int24_at(const uint8_t *at)
{
    uint32_t a = word_at(at), b = word_at(at + 4), c = word_at(at + 8);
    return (four_samples){scaled24(a << 8), scaled24((a >> 16 & 0xff00) | b << 16),
                          scaled24((b >> 8 & 0xffff00) | c << 24), scaled24(c)};
}

FOR_EACH_PROCESSOR static void mix_int24(const uint8_t *restrict in, Py_ssize_t frames, int stereo, float *restrict out)
{
    Py_ssize_t fours = (stereo ? 2 * frames : frames) / 4;
    if (stereo)
        for (Py_ssize_t n = 0; n < fours; n++) {
            four_samples four = four_int24_at(in + 12 * n);
            out[2 * n] = (four.first + four.second) * 0.5f;
            out[2 * n + 1] = (four.third + four.fourth) * 0.5f;
        }
    else
        for (Py_ssize_t n = 0; n < fours; n++) {
            four_samples four = four_int24_at(in + 12 * n);
            out[4 * n] = four.first;
            out[4 * n + 1] = four.second;
            out[4 * n + 2] = four.third;
            out[4 * n + 3] = four.fourth;
        }
    for (Py_ssize_t n = 4 * fours / (1 + stereo); n < frames; n++)
        out[n] = stereo ? (int24_at(in + 6 * n) + int24_at(in + 6 * n + 3)) * 0.5f : int24_at(in + 3 * n);
}

static inline float int32_at(const uint8_t *at)
{
    int32_t value;
    memcpy(&value, at, 4);
    return (float)value * (1.0f / 2147483648.0f);
}

static inline float float_at(const uint8_t *at)
{
    float value;
    memcpy(&value, at, 4);
    return value;
}

#define MIXER(kind, width)                                                                              \
    FOR_EACH_PROCESSOR static void mix_##kind(const uint8_t *restrict in, Py_ssize_t frames, int stereo, float *restrict out) \
    {                                                                                                   \
        if (stereo)                                                                                     \
            for (Py_ssize_t n = 0; n < frames; n++)                                                     \
                out[n] = (kind##_at(in + 2 * width * n) + kind##_at(in + 2 * width * n + width)) * 0.5f; \
        else                                                                                            \
            for (Py_ssize_t n = 0; n < frames; n++)                                                     \
                out[n] = kind##_at(in + width * n);                                                     \
    }

MIXER(int16, 2)
MIXER(int32, 4)
MIXER(float, 4)

/* The largest magnitude: without their signs, floats are in the order of their bits, infinities and NaN above all. */
FOR_EACH_PROCESSOR static float find_peak(const float *samples, Py_ssize_t count)
{
    uint32_t largest = 0;
    float peak;
    for (Py_ssize_t n = 0; n < count; n++) {
        uint32_t bits;
        memcpy(&bits, samples + n, 4);
        bits &= 0x7fffffff;
        largest = bits > largest ? bits : largest;
    }
    memcpy(&peak, &largest, 4);
    return peak;
}

static PyObject *py_mix(PyObject *module, PyObject *args)
{
    typedef void mixer(const uint8_t *, Py_ssize_t, int, float *);
    static mixer *const of_width[] = {NULL, NULL, mix_int16, mix_int24, mix_int32};
    Py_buffer data, out;
    Py_ssize_t offset;
    int width, is_float, stereo;
    float peak = 0.0f;
    (void)module;
    if (!PyArg_ParseTuple(args, "y*nippw*", &data, &offset, &width, &is_float, &stereo, &out))
        return NULL;
    Py_ssize_t frames = out.len / 4;
    int fits = width >= 2 && width <= 4 && (!is_float || width == 4) && offset >= 0 && offset <= data.len
        && frames <= (data.len - offset) / (width * (1 + stereo));
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        (is_float ? mix_float : of_width[width])((const uint8_t *)data.buf + offset, frames, stereo, out.buf);
        peak = find_peak(out.buf, frames);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    PyBuffer_Release(&out);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "the samples do not lie in the data");
        return NULL;
    }
    return PyFloat_FromDouble(peak);
}

static PyMethodDef methods[] = {
    {"mix", py_mix, METH_VARARGS, "Fill a mono waveform and return its peak; see drumline.pcm."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_pcm", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__pcm(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "VERSION", VERSION))
        Py_CLEAR(module);
    return module;
}
