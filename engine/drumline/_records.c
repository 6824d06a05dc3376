/* Lines of an index, skimmed: checked as drumline.index.parse_record checks them, but only the fields that counting and
rebuilding look at become objects. A line is skimmed only where it is written as drumline writes records, byte for
byte: keys in their order, no spaces, no escapes. For any other the answer is None, and Python looks. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#define VERSION 1 /* of what drumline.skim calls: raised with any change of arguments or results */
#define LARGEST "9223372036854775807" /* of whole numbers: what 64 bits hold */
#define MOST_CHARACTERS 24 /* of a number: more than any of ours has */
#define MOST_EXPONENT 2 /* digits: no number of ours overflows */

typedef enum {
    ONE, TEXT, TEXT_OR_NULL, WHOLE, WHOLE_OR_NULL, NUMBER, NUMBER_OR_NULL, CONFIDENCE, TRUTH, TOPK, PROBS, FAILURE
} kind;

typedef struct {
    const char *key; /* with what stands before and behind it */
    kind kind;
    const char *name; /* under which it is kept; NULL where it is not */
} field;

/* As drumline.records.Record has them; a test holds both equal. */
static const field FIELDS[] = {
    {"{\"schema_version\":", ONE, NULL},
    {",\"relative_path\":", TEXT, "relative_path"},
    {",\"relative_path_b64\":", TEXT_OR_NULL, "relative_path_b64"},
    {",\"abs_path\":", TEXT, NULL},
    {",\"abs_path_b64\":", TEXT_OR_NULL, NULL},
    {",\"hash\":", TEXT_OR_NULL, "hash"},
    {",\"size\":", WHOLE, "size"},
    {",\"mtime\":", NUMBER, NULL},
    {",\"mtime_ns\":", WHOLE, "mtime_ns"},
    {",\"format\":", TEXT, "format"},
    {",\"sample_rate\":", WHOLE_OR_NULL, NULL},
    {",\"channels\":", WHOLE_OR_NULL, NULL},
    {",\"duration_sec\":", NUMBER_OR_NULL, "duration_sec"},
    {",\"rms_db\":", NUMBER_OR_NULL, NULL},
    {",\"spectral_centroid\":", NUMBER_OR_NULL, NULL},
    {",\"spectral_rolloff\":", NUMBER_OR_NULL, NULL},
    {",\"label_top1\":", TEXT_OR_NULL, "label_top1"},
    {",\"conf_top1\":", CONFIDENCE, NULL},
    {",\"topk\":", TOPK, NULL},
    {",\"probs\":", PROBS, NULL},
    {",\"gate\":", NUMBER_OR_NULL, NULL}, /* some models have none */
    {",\"assigned_label\":", TEXT, "assigned_label"},
    {",\"assigned_conf\":", CONFIDENCE, "assigned_conf"},
    {",\"assigned_reason\":", TEXT, "assigned_reason"},
    {",\"misc_routed\":", TRUTH, NULL},
    {",\"below_misc_threshold\":", TRUTH, NULL},
    {",\"out_of_target\":", TRUTH, NULL},
    {",\"errors\":", FAILURE, "errors"},
};

#define COUNT (sizeof FIELDS / sizeof *FIELDS)
#define OPTIONAL 20

/* Where a value stands in the line; a text without its quotes. */
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
    return digits > 0 && digits <= MOST_EXPONENT;
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
    if (skip(of, "null"))
        return 1;
    if (!skip_number(of))
        return 0;
    double value = PyOS_string_to_double(start, &end, NULL); /* -1 where there is no memory for it */
    PyErr_Clear();
    return value >= 0 && value <= 1;
}

static int skip_topk(line *of)
{
    span label;
    if (!skip(of, "["))
        return 0;
    for (int more = !skip(of, "]"); more; more = !skip(of, "]")) {
        if (!skip(of, "{\"label\":") || !skip_text(of, &label) || !skip(of, ",\"prob\":") || !skip_number(of)
            || !skip(of, "}"))
            return 0;
        if (*of->at != ']' && !(skip(of, ",") && *of->at == '{'))
            return 0;
    }
    return 1;
}

static int skip_probs(line *of)
{
    span label;
    if (skip(of, "null"))
        return 1;
    if (!skip(of, "{"))
        return 0;
    for (int more = !skip(of, "}"); more; more = !skip(of, "}")) {
        if (!skip_text(of, &label) || !skip(of, ":") || !skip_number(of))
            return 0;
        if (*of->at != '}' && !(skip(of, ",") && *of->at == '"'))
            return 0;
    }
    return 1;
}

static int skip_failure(line *of)
{
    if (skip(of, "null"))
        return 1;
    return skip(of, "{\"type\":") && skip_text(of, &of->type) && skip(of, ",\"message\":")
        && skip_text(of, &of->message) && skip(of, "}");
}

static int skip_value(line *of, kind kind, span *value)
{
    switch (kind) {
    case ONE: return skip(of, "1");
    case TEXT: return skip_text(of, value);
    case TEXT_OR_NULL: return skip(of, "null") || skip_text(of, value);
    case WHOLE: return skip_whole(of);
    case WHOLE_OR_NULL: return skip(of, "null") || skip_whole(of);
    case NUMBER: return skip_number(of);
    case NUMBER_OR_NULL: return skip(of, "null") || skip_number(of);
    case CONFIDENCE: return skip_confidence(of);
    case TRUTH: return skip(of, "true") || skip(of, "false");
    case TOPK: return skip_topk(of);
    case PROBS: return skip_probs(of);
    case FAILURE: return skip_failure(of);
    }
    return 0;
}

/* Whether a line is a plain record; then it stands behind it. */
static int skip_record(line *of)
{
    for (size_t n = 0; n < COUNT; n++) {
        if (!skip(of, FIELDS[n].key)) {
            if (n == OPTIONAL)
                continue;
            return 0;
        }
        of->values[n] = (span){of->at, 0};
        if (!skip_value(of, FIELDS[n].kind, &of->values[n]))
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
    Py_INCREF(*latest);
    return *latest;
}

static PyObject *whole_of(const char *at)
{
    int64_t value = 0, sign = *at == '-' ? -1 : 1;
    for (at += *at == '-'; *at >= '0' && *at <= '9'; at++)
        value = 10 * value + (*at - '0');
    return PyLong_FromLongLong(sign * value);
}

static PyObject *number_of(const char *start)
{
    const char *at = start + (*start == '-');
    char *end;
    while (*at >= '0' && *at <= '9')
        at++;
    if (*at != '.' && *at != 'e' && *at != 'E')
        return whole_of(start);
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
    const char *start = of->values[n].start;
    if (*start == 'n' && start[-1] == ':') /* behind a quote it is a text */
        Py_RETURN_NONE;
    switch (FIELDS[n].kind) {
    case TEXT:
    case TEXT_OR_NULL: return text_of(of->values[n], &latest->texts[n], &latest->spans[n]);
    case WHOLE: return whole_of(start);
    case FAILURE: return failure_of(of);
    default: return number_of(start);
    }
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
static int is_utf8(const char *start, const line *of)
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
    if (end - start < longest && skip_record(&of) && of.at == end && is_utf8(start, &of))
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
        start = stop + (newline != NULL);
    }
    return 1;
}

static PyObject *py_skimmed(PyObject *module, PyObject *args)
{
    cache latest = {0};
    PyObject *data, *records;
    Py_ssize_t longest;
    (void)module;
    if (!PyArg_ParseTuple(args, "Sn", &data, &longest) || (records = PyList_New(0)) == NULL)
        return NULL;
    const char *start = PyBytes_AsString(data); /* bytes have a NUL behind them */
    if (!append_lines(records, start, start + PyBytes_Size(data), longest, &latest))
        Py_CLEAR(records);
    for (size_t n = 0; n < COUNT; n++)
        Py_XDECREF(latest.texts[n]);
    return records;
}

static PyMethodDef methods[] = {
    {"skimmed", py_skimmed, METH_VARARGS, "Skim the lines of a frame, or say None of one; see drumline.skim."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_records", NULL, 0, methods, NULL, NULL, NULL, NULL};

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
