/* Lines of an index, skimmed: checked as drumline.index.parse_record checks them, but only the fields that counting and
rebuilding look at become objects. A line is skimmed only where it is written as drumline writes records, byte for
byte: keys in their order, no spaces, no escapes. For any other the answer is None, and Python looks. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>
#include <string.h>

#define VERSION 1 /* of what drumline.skim calls: raised with any change of arguments or results */
#define LARGEST "9223372036854775807" /* of whole numbers: what 64 bits hold */
/* Of other numbers. With so few characters and so short an exponent none overflows, which JSON's readers refuse. */
#define MOST_CHARACTERS 24
#define MOST_EXPONENT_DIGITS 2

typedef enum {
    ONE, TEXT, TEXT_OR_NULL, WHOLE, WHOLE_OR_NULL, NUMBER, NUMBER_OR_NULL, CONFIDENCE, TRUTH, TOPK, PROBS, FAILURE
} kind;

typedef struct {
    const char *key; /* with what stands before and behind it */
    kind is;
    const char *name; /* under which it is kept; NULL where it is not */
    int may_lack;
} field;

/* In the order in which drumline.pipeline.assemble writes them; a test skims what it wrote. */
static const field FIELDS[] = {
    {.key = "{\"schema_version\":", .is = ONE},
    {.key = ",\"relative_path\":", .is = TEXT, .name = "relative_path"},
    {.key = ",\"relative_path_b64\":", .is = TEXT_OR_NULL, .name = "relative_path_b64"},
    {.key = ",\"abs_path\":", .is = TEXT},
    {.key = ",\"abs_path_b64\":", .is = TEXT_OR_NULL},
    {.key = ",\"hash\":", .is = TEXT_OR_NULL, .name = "hash"},
    {.key = ",\"size\":", .is = WHOLE, .name = "size"},
    {.key = ",\"mtime\":", .is = NUMBER},
    {.key = ",\"mtime_ns\":", .is = WHOLE, .name = "mtime_ns"},
    {.key = ",\"format\":", .is = TEXT, .name = "format"},
    {.key = ",\"sample_rate\":", .is = WHOLE_OR_NULL},
    {.key = ",\"channels\":", .is = WHOLE_OR_NULL},
    {.key = ",\"duration_sec\":", .is = NUMBER_OR_NULL, .name = "duration_sec"},
    {.key = ",\"rms_db\":", .is = NUMBER_OR_NULL},
    {.key = ",\"spectral_centroid\":", .is = NUMBER_OR_NULL},
    {.key = ",\"spectral_rolloff\":", .is = NUMBER_OR_NULL},
    {.key = ",\"label_top1\":", .is = TEXT_OR_NULL, .name = "label_top1"},
    {.key = ",\"conf_top1\":", .is = CONFIDENCE},
    {.key = ",\"topk\":", .is = TOPK},
    {.key = ",\"probs\":", .is = PROBS},
    {.key = ",\"assigned_label\":", .is = TEXT, .name = "assigned_label"},
    {.key = ",\"assigned_conf\":", .is = CONFIDENCE, .name = "assigned_conf"},
    {.key = ",\"assigned_reason\":", .is = TEXT, .name = "assigned_reason"},
    {.key = ",\"misc_routed\":", .is = TRUTH},
    {.key = ",\"below_misc_threshold\":", .is = TRUTH},
    {.key = ",\"out_of_target\":", .is = TRUTH},
    {.key = ",\"errors\":", .is = FAILURE, .name = "errors"},
    {.key = ",\"gate\":", .is = NUMBER_OR_NULL, .may_lack = 1},
};

#define COUNT (sizeof FIELDS / sizeof *FIELDS)

/* Where a value stands in the line; a text without its quotes, and null nowhere. */
typedef struct {
    const char *start;
    size_t size;
} span;

/* A line as far as it was looked at. It ends in a NUL or a newline, and neither is stepped over. */
typedef struct {
    const char *at;
    unsigned char bits; /* of all characters of texts: the highest is set where one is not ASCII */
    span values[COUNT];
    span type, message; /* of the error */
} line;

static PyObject *names[COUNT], *name_of_type, *name_of_message;

static int skip(line *of, const char *expected)
{
    const char *at = of->at;
    while (*expected)
        if (*at++ != *expected++)
            return 0;
    of->at = at;
    return 1;
}

static int skip_null(line *of, span *value)
{
    int is_null = skip(of, "null");
    if (is_null)
        value->start = NULL;
    return is_null;
}

static int skip_text(line *of, span *inner)
{
    const char *at = of->at;
    unsigned char bits = of->bits;
    if (*at++ != '"')
        return 0;
    inner->start = at;
    for (unsigned char next; (next = (unsigned char)*at) != '"'; at++) {
        if (next < 0x20 || next == '\\')
            return 0;
        bits |= next;
    }
    inner->size = (size_t)(at - inner->start);
    of->at = at + 1;
    of->bits = bits;
    return 1;
}

static size_t skip_digits(line *of)
{
    const char *start = of->at;
    while (*of->at >= '0' && *of->at <= '9')
        of->at++;
    return (size_t)(of->at - start);
}

static int skip_whole(line *of)
{
    int is_negative = skip(of, "-");
    const char *first = of->at;
    size_t digits = skip_digits(of), most = sizeof LARGEST - 1;
    if (digits == 0 || digits > most || (digits == most && strncmp(first, LARGEST, most) > 0))
        return 0;
    return *first != '0' || (digits == 1 && !is_negative);
}

static int skip_exponent(line *of)
{
    if (!skip(of, "e") && !skip(of, "E"))
        return 1;
    if (!skip(of, "-"))
        skip(of, "+");
    size_t digits = skip_digits(of);
    return digits > 0 && digits <= MOST_EXPONENT_DIGITS;
}

static int skip_number(line *of)
{
    const char *start = of->at;
    skip(of, "-");
    const char *first = of->at;
    size_t digits = skip_digits(of);
    if (digits == 0 || (*first == '0' && digits > 1))
        return 0;
    if (*of->at != '.' && *of->at != 'e' && *of->at != 'E') {
        of->at = start;
        return skip_whole(of);
    }
    if (skip(of, ".") && skip_digits(of) == 0)
        return 0;
    return skip_exponent(of) && (size_t)(of->at - start) <= MOST_CHARACTERS;
}

static int skip_confidence(line *of)
{
    const char *start = of->at;
    char *end;
    if (!skip_number(of))
        return 0;
    double value = PyOS_string_to_double(start, &end, NULL);
    if (value == -1.0 && PyErr_Occurred()) /* no memory: then Python has to look, and to say so */
        PyErr_Clear();
    return value >= 0 && value <= 1;
}

static int skip_topk(line *of)
{
    span label;
    if (!skip(of, "["))
        return 0;
    if (skip(of, "]"))
        return 1;
    do {
        if (!skip(of, "{\"label\":") || !skip_text(of, &label) || !skip(of, ",\"prob\":") || !skip_number(of)
            || !skip(of, "}"))
            return 0;
    } while (skip(of, ","));
    return skip(of, "]");
}

static int skip_probs(line *of)
{
    span label;
    if (!skip(of, "{"))
        return 0;
    if (skip(of, "}"))
        return 1;
    do {
        if (!skip_text(of, &label) || !skip(of, ":") || !skip_number(of))
            return 0;
    } while (skip(of, ","));
    return skip(of, "}");
}

static int skip_failure(line *of)
{
    return skip(of, "{\"type\":") && skip_text(of, &of->type) && skip(of, ",\"message\":")
        && skip_text(of, &of->message) && skip(of, "}");
}

static int skip_value(line *of, kind is, span *value)
{
    *value = (span){of->at, 0};
    switch (is) {
    case ONE: return skip(of, "1");
    case TEXT: return skip_text(of, value);
    case TEXT_OR_NULL: return skip_null(of, value) || skip_text(of, value);
    case WHOLE: return skip_whole(of);
    case WHOLE_OR_NULL: return skip_null(of, value) || skip_whole(of);
    case NUMBER: return skip_number(of);
    case NUMBER_OR_NULL: return skip_null(of, value) || skip_number(of);
    case CONFIDENCE: return skip_null(of, value) || skip_confidence(of);
    case TRUTH: return skip(of, "true") || skip(of, "false");
    case TOPK: return skip_topk(of);
    case PROBS: return skip_null(of, value) || skip_probs(of);
    case FAILURE: return skip_null(of, value) || skip_failure(of);
    }
    return 0;
}

/* Whether a line is a plain record; then it stands behind it. */
static int skip_record(line *of)
{
    for (size_t n = 0; n < COUNT; n++) {
        if (skip(of, FIELDS[n].key) ? !skip_value(of, FIELDS[n].is, &of->values[n]) : !FIELDS[n].may_lack)
            return 0;
    }
    return skip(of, "}");
}

/* Records next to each other mostly have the same label and format, so that one object serves for many. */
static PyObject *text_of(span value, PyObject **latest, span *latest_span)
{
    if (*latest == NULL || latest_span->size != value.size || memcmp(latest_span->start, value.start, value.size)) {
        PyObject *text = PyUnicode_DecodeUTF8(value.start, (Py_ssize_t)value.size, "strict");
        if (text == NULL)
            return NULL;
        Py_XDECREF(*latest);
        *latest = text, *latest_span = value;
    }
    return Py_NewRef(*latest);
}

static PyObject *number_of(const char *start)
{
    char *end;
    const char *behind = start + strspn(start, "-0123456789");
    if (*behind != '.' && *behind != 'e' && *behind != 'E')
        return PyLong_FromLongLong(strtoll(start, NULL, 10));
    double value = PyOS_string_to_double(start, &end, NULL);
    return value == -1.0 && PyErr_Occurred() ? NULL : PyFloat_FromDouble(value);
}

static PyObject *failure_of(const line *of)
{
    PyObject *failure = PyDict_New();
    PyObject *type = PyUnicode_DecodeUTF8(of->type.start, (Py_ssize_t)of->type.size, "strict");
    PyObject *message = PyUnicode_DecodeUTF8(of->message.start, (Py_ssize_t)of->message.size, "strict");
    if (failure == NULL || type == NULL || message == NULL || PyDict_SetItem(failure, name_of_type, type)
        || PyDict_SetItem(failure, name_of_message, message))
        Py_CLEAR(failure);
    Py_XDECREF(type);
    Py_XDECREF(message);
    return failure;
}

/* The texts made last, by field. */
typedef struct {
    PyObject *texts[COUNT];
    span spans[COUNT];
} cache;

static PyObject *value_of(const line *of, size_t n, cache *latest)
{
    if (of->values[n].start == NULL)
        Py_RETURN_NONE;
    switch (FIELDS[n].is) {
    case TEXT:
    case TEXT_OR_NULL: return text_of(of->values[n], &latest->texts[n], &latest->spans[n]);
    case WHOLE:
    case WHOLE_OR_NULL:
    case NUMBER:
    case NUMBER_OR_NULL:
    case CONFIDENCE: return number_of(of->values[n].start);
    case FAILURE: return failure_of(of);
    case ONE:
    case TRUTH:
    case TOPK:
    case PROBS: break;
    }
    PyErr_SetString(PyExc_SystemError, "a field of this kind is not kept");
    return NULL;
}

static PyObject *record_of(const line *of, cache *latest)
{
    PyObject *record = PyDict_New();
    for (size_t n = 0; record != NULL && n < COUNT; n++) {
        if (FIELDS[n].name == NULL)
            continue;
        PyObject *value = value_of(of, n, latest);
        if (value == NULL || PyDict_SetItem(record, names[n], value))
            Py_CLEAR(record);
        Py_XDECREF(value);
    }
    return record;
}

/* Whether a whole line is UTF-8, as JSON has to be. */
static int is_utf8(const line *of, const char *start)
{
    PyObject *text;
    if (of->bits < 0x80)
        return 1;
    text = PyUnicode_DecodeUTF8(start, of->at - start, "strict");
    if (text == NULL)
        PyErr_Clear();
    Py_XDECREF(text);
    return text != NULL;
}

static PyObject *skimmed_line(const char *start, const char *end, Py_ssize_t longest, cache *latest)
{
    line of = {.at = start};
    /* A line's length counts its newline. */
    if (end - start < longest && skip_record(&of) && of.at == end && is_utf8(&of, start))
        return record_of(&of, latest);
    Py_RETURN_NONE;
}

static int append_lines(PyObject *records, const char *start, const char *end, Py_ssize_t longest, cache *latest)
{
    while (start < end) {
        const char *newline = memchr(start, '\n', (size_t)(end - start));
        const char *stop = newline == NULL ? end : newline;
        PyObject *record = skimmed_line(start, stop, longest, latest);
        int failed = record == NULL || PyList_Append(records, record);
        Py_XDECREF(record);
        if (failed)
            return 0;
        start = stop + 1;
    }
    return 1;
}

static PyObject *py_skimmed(PyObject *module, PyObject *args)
{
    cache latest = {0};
    PyObject *data;
    Py_ssize_t longest;
    (void)module;
    if (!PyArg_ParseTuple(args, "Sn", &data, &longest))
        return NULL;
    PyObject *records = PyList_New(0);
    const char *start = PyBytes_AsString(data); /* bytes have a NUL behind them */
    if (records != NULL && !append_lines(records, start, start + PyBytes_Size(data), longest, &latest))
        Py_CLEAR(records);
    for (size_t n = 0; n < COUNT; n++)
        Py_XDECREF(latest.texts[n]);
    return records;
}

static PyMethodDef methods[] = {
    {"skimmed", py_skimmed, METH_VARARGS, "Skim the lines of a frame, or say None of one; see drumline.skim."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_records", NULL, -1, methods, NULL, NULL, NULL, NULL};

static int make_names(void)
{
    for (size_t n = 0; n < COUNT; n++)
        if (FIELDS[n].name != NULL && (names[n] = PyUnicode_InternFromString(FIELDS[n].name)) == NULL)
            return 0;
    name_of_type = PyUnicode_InternFromString("type");
    name_of_message = PyUnicode_InternFromString("message");
    return name_of_type != NULL && name_of_message != NULL;
}

PyMODINIT_FUNC PyInit__records(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && (!make_names() || PyModule_AddIntConstant(module, "VERSION", VERSION)))
        Py_CLEAR(module);
    return module;
}
