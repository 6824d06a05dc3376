/* What a file's frames hold, and the features made of it: the compiled twin of drumline.spectra.PlainSpectra and of
drumline.coefficients.PlainCoefficients.

Every frame is one lane of a vector, so all arithmetic is that of a single frame, written once. A vector is as wide as
the processor's registers, for compilers keep wider ones in memory: sixteen frames with AVX-512, eight with AVX2, four
elsewhere. The samples are first laid out by their place within a hop: then one load brings the same sample of all
frames of a vector.

The transform is Stockham's (W. T. Cochran et al., What is the fast Fourier transform?, 1967), radix 4 with a last
pass of radix 2 where it is needed, over half as many complex values as there are samples. The statistics are
summed in the order of PlainSpectra: first blocks of bins, then within the block where the rolloff lies. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include <stdint.h>

#define MOST_LANES 16
#define LARGEST (1 << 24)
#define SMALLEST 1.17549435e-38f
#define LOWEST_POWER 1e-10f
#define LOWEST_DB -100.0f
#define ROWS 4 /* of the cosine transform at once: the sums of more do not stay in registers */
#define VERSION 2 /* of what drumline.spectra calls: raised with any change of arguments or results */
#define INLINE static inline __attribute__((always_inline))

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define HAS_KINDS /* instructions that not all processors have are compiled as well */
#endif

typedef struct {
    float re, im;
} complex_value;

typedef struct {
    Py_ssize_t n_fft, hop_length, n_mels, block;
    const float *window;              /* n_fft */
    const complex_value *twiddles;    /* n_fft: exp(-2 pi i k / n_fft) */
    const int32_t *band_start;        /* n_mels + 1: where the weights of each band begin */
    const int32_t *band_bin;          /* n_mels: its first bin */
    const float *weights;
} front_end;

typedef struct {
    Py_ssize_t frames;
    float *mel;                       /* n_mels x frames */
    float *mean_power, *centroid;     /* frames */
    int32_t *rolloff;                 /* frames */
    uint8_t *close;                   /* frames */
    float share, noise;
} figures;

typedef struct {
    Py_ssize_t n_mels, n_mfcc, frames; /* of the whole tensor; n_mfcc is 0 where it is the mel bands themselves */
    const float *noise_db;             /* n_mels */
    const double *dct;                 /* n_mfcc x n_mels */
    float top_db;
} tensor;

#define PASTE(name, kind) name##_##kind
#define NAMED(name, kind) PASTE(name, kind)
#define FN(name) NAMED(name, KIND)

typedef void analyser(const front_end *, const float *, Py_ssize_t, figures *, float *, int);
typedef float finisher(const tensor *, float *, const float *, Py_ssize_t, double *, uint8_t *, float *);

#define KIND any
#define LANES 4
#include "_spectra_frames.h"
#undef KIND
#undef LANES

#ifdef HAS_KINDS
#pragma GCC push_options
#pragma GCC target("avx2,fma")
#define KIND avx2
#define LANES 8
#include "_spectra_frames.h"
#undef KIND
#undef LANES
#pragma GCC pop_options

#pragma GCC push_options
#pragma GCC target("avx512f,avx512vl,avx2,fma")
#define KIND avx512
#define LANES 16
#include "_spectra_frames.h"
#undef KIND
#undef LANES
#pragma GCC pop_options

#endif

/* From the slowest to the fastest; how many of them this processor has is decided once. */
static const struct {
    analyser *analyse;
    finisher *finish;
} kinds[] = {
    {analyse_any, finish_any},
#ifdef HAS_KINDS
    {analyse_avx2, finish_avx2},
    {analyse_avx512, finish_avx512},
#endif
};

static int usable_kinds(void)
{
#ifdef HAS_KINDS
    __builtin_cpu_init();
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma"))
        return 1;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") ? 3 : 2;
#else
    return 1;
#endif
}

static int holds(const Py_buffer *buffer, int64_t values, int64_t size)
{
    return values >= 0 && buffer->len / size >= values;
}

/* Whether every band lies within the bins and the weights: a mistake here would read other memory. */
static int bands_fit(const front_end *fe, int64_t weights)
{
    for (Py_ssize_t band = 0; band < fe->n_mels; band++) {
        int64_t start = fe->band_start[band], end = fe->band_start[band + 1], bin = fe->band_bin[band];
        if (start < 0 || end < start || end > weights || bin < 0 || bin + end - start > fe->n_fft / 2 + 1)
            return 0;
    }
    return 1;
}

static PyObject *py_analyse(PyObject *module, PyObject *args)
{
    enum { SAMPLES, WINDOW, TWIDDLES, BAND_START, BAND_BIN, WEIGHTS, SCRATCH, MEL, MEAN_POWER, CENTROID, ROLLOFF,
           CLOSE, COUNT };
    Py_buffer b[COUNT] = {{0}};
    front_end fe = {0};
    figures out = {0};
    int with_statistics, kind;
    (void)module;
    if (!PyArg_ParseTuple(args, "innnnffpy*y*y*y*y*y*w*w*w*w*w*w*", &kind, &fe.n_fft, &fe.hop_length, &fe.block, &out.frames,
                          &out.share, &out.noise, &with_statistics, &b[SAMPLES], &b[WINDOW], &b[TWIDDLES],
                          &b[BAND_START], &b[BAND_BIN], &b[WEIGHTS], &b[SCRATCH], &b[MEL], &b[MEAN_POWER],
                          &b[CENTROID], &b[ROLLOFF], &b[CLOSE]))
        return NULL;
    fe.window = b[WINDOW].buf, fe.twiddles = b[TWIDDLES].buf, fe.weights = b[WEIGHTS].buf;
    fe.band_start = b[BAND_START].buf, fe.band_bin = b[BAND_BIN].buf;
    fe.n_mels = b[BAND_BIN].len / 4;
    out.mel = b[MEL].buf, out.mean_power = b[MEAN_POWER].buf, out.centroid = b[CENTROID].buf;
    out.rolloff = b[ROLLOFF].buf, out.close = b[CLOSE].buf;
    int64_t frames = out.frames, n_fft = fe.n_fft, hop_length = fe.hop_length, n_mels = fe.n_mels;
    int fits = kind >= 0 && kind < usable_kinds() && n_fft >= 8 && n_fft <= LARGEST && (n_fft & (n_fft - 1)) == 0
        && hop_length >= 1 && hop_length <= LARGEST && frames >= 1 && frames <= LARGEST && n_mels <= LARGEST
        && fe.block >= 1 && fe.block <= n_fft
        && holds(&b[WINDOW], n_fft, 4) && holds(&b[TWIDDLES], n_fft, 8) && holds(&b[BAND_START], n_mels + 1, 4)
        && bands_fit(&fe, b[WEIGHTS].len / 4) && holds(&b[MEL], n_mels * frames, 4)
        && holds(&b[MEAN_POWER], frames, 4) && holds(&b[CENTROID], frames, 4) && holds(&b[ROLLOFF], frames, 4)
        && holds(&b[CLOSE], frames, 1)
        && holds(&b[SCRATCH],
                 2 * n_fft * MOST_LANES + hop_length * (frames + (n_fft + hop_length - 1) / hop_length + MOST_LANES), 4);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        kinds[kind].analyse(&fe, b[SAMPLES].buf, b[SAMPLES].len / 4, &out, b[SCRATCH].buf, with_statistics);
        Py_END_ALLOW_THREADS
    }
    for (int which = 0; which < COUNT; which++)
        PyBuffer_Release(&b[which]);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "sizes of arrays do not fit the front end");
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *py_finish(PyObject *module, PyObject *args)
{
    enum { MEL, MEAN_POWER, NOISE_DB, DCT, SCRATCH, NOISY, OUT, COUNT };
    Py_buffer b[COUNT] = {{0}};
    tensor to = {0};
    Py_ssize_t reached;
    float floor_db = 0.0f;
    int kind;
    (void)module;
    if (!PyArg_ParseTuple(args, "innnfw*y*y*y*w*w*w*", &kind, &to.n_mfcc, &to.frames, &reached, &to.top_db, &b[MEL],
                          &b[MEAN_POWER], &b[NOISE_DB], &b[DCT], &b[SCRATCH], &b[NOISY], &b[OUT]))
        return NULL;
    to.n_mels = b[NOISE_DB].len / 4, to.noise_db = b[NOISE_DB].buf, to.dct = b[DCT].buf;
    int64_t n_mels = to.n_mels, n_mfcc = to.n_mfcc, frames = to.frames;
    int fits = kind >= 0 && kind < usable_kinds() && n_mels >= 1 && n_mels <= LARGEST && n_mfcc >= 0
        && n_mfcc <= n_mels && reached >= 1 && reached <= frames && frames <= LARGEST
        && holds(&b[MEL], n_mels * reached, 4) && holds(&b[MEAN_POWER], reached, 4) && holds(&b[DCT], n_mfcc * n_mels, 8)
        && holds(&b[SCRATCH], n_mels * MOST_LANES, 8) && holds(&b[SCRATCH], reached, 4) && holds(&b[NOISY], reached, 1)
        && holds(&b[OUT], (n_mfcc ? n_mfcc : n_mels) * frames, 4);
    if (fits) {
        Py_BEGIN_ALLOW_THREADS
        floor_db = kinds[kind].finish(&to, b[MEL].buf, b[MEAN_POWER].buf, reached, b[SCRATCH].buf, b[NOISY].buf, b[OUT].buf);
        Py_END_ALLOW_THREADS
    }
    for (int which = 0; which < COUNT; which++)
        PyBuffer_Release(&b[which]);
    if (!fits) {
        PyErr_SetString(PyExc_ValueError, "sizes of arrays do not fit the tensor");
        return NULL;
    }
    return PyFloat_FromDouble(floor_db);
}

static PyMethodDef methods[] = {
    {"analyse", py_analyse, METH_VARARGS, "Fill the figures of all frames; see drumline.spectra."},
    {"finish", py_finish, METH_VARARGS, "Fill a feature tensor from mel bands; see drumline.coefficients."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_spectra", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__spectra(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL
        && (PyModule_AddIntConstant(module, "VERSION", VERSION) || PyModule_AddIntConstant(module, "LANES", MOST_LANES)
            || PyModule_AddIntConstant(module, "KINDS", usable_kinds())))
        Py_CLEAR(module);
    return module;
}
