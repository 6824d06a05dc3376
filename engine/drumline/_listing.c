/* A directory's audio files with their sizes and times in one call: the compiled twin of what drumline.walk.Walk does with
os.scandir, for directories that hold nothing out of the ordinary. Of any other it says None, and Python looks.
And one file, whether it is as it was when it was indexed: the twin of drumline.rebuild.tree.Sources.stat. */

#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define VERSION 2 /* of what drumline.walk and rebuild call: raised with any change of arguments or results */
#define SECOND_NS 1000000000LL
#define LAST_SECOND 9000000000LL /* in the year 2255; of what is later, Python decides what it counts as */

#ifdef __APPLE__
#define MTIME st_mtimespec
#else
#define MTIME st_mtim
#endif

/* Names, one behind the other with a NUL behind each, and where each begins. */
typedef struct {
    char *text;
    const char **sorted;
    size_t *starts;
    size_t length, room, count, starts_room;
} names;

static int add_name(names *to, const char *name)
{
    size_t size = strlen(name) + 1;
    if (to->room - to->length < size) {
        size_t room = 2 * to->room + size + 4096;
        char *text = realloc(to->text, room);
        if (text == NULL)
            return 0;
        to->text = text, to->room = room;
    }
    if (to->count == to->starts_room) {
        size_t room = 2 * to->starts_room + 64;
        size_t *starts = realloc(to->starts, room * sizeof *starts);
        if (starts == NULL)
            return 0;
        to->starts = starts, to->starts_room = room;
    }
    to->starts[to->count++] = to->length;
    memcpy(to->text + to->length, name, size);
    to->length += size;
    return 1;
}

static int in_order(const void *a, const void *b)
{
    return strcmp(*(const char *const *)a, *(const char *const *)b);
}

static int sort_names(names *of)
{
    of->sorted = malloc((of->count + 1) * sizeof *of->sorted);
    if (of->sorted == NULL)
        return 0;
    for (size_t n = 0; n < of->count; n++)
        of->sorted[n] = of->text + of->starts[n];
    qsort(of->sorted, of->count, sizeof *of->sorted, in_order);
    return 1;
}

static void free_names(names *of)
{
    free(of->text);
    free(of->starts);
    free(of->sorted);
}

/* Whether `suffix`, whatever its case, is one of `formats`, which are lower case with a NUL behind each. */
static int is_format(const char *suffix, const char *formats)
{
    for (; *formats; formats += strlen(formats) + 1) {
        const char *at = suffix, *format = formats;
        while (*at && (*at >= 'A' && *at <= 'Z' ? *at + 32 : *at) == *format)
            at++, format++;
        if (!*at && !*format)
            return 1;
    }
    return 0;
}

/* As drumline.walk.WalkSettings.is_wanted. */
static int is_wanted(const char *name, const char *formats)
{
    const char *dot = strrchr(name, '.');
    return dot != NULL && strncmp(name, "._", 2) != 0 && is_format(dot + 1, formats);
}

/* Read what is in a directory; 0 where something has to be looked at more closely. */
static int read_entries(DIR *directory, const char *formats, names *files, names *below)
{
    struct dirent *entry;
    while (errno = 0, (entry = readdir(directory)) != NULL) {
        const char *name = entry->d_name;
        if (strcmp(name, ".") == 0 || strcmp(name, "..") == 0)
            continue;
        if (entry->d_type == DT_DIR) {
            if (!add_name(below, name))
                return 0;
        } else if (entry->d_type == DT_UNKNOWN) {
            return 0;
        } else if (is_wanted(name, formats)) {
            if (entry->d_type != DT_REG || !add_name(files, name))
                return 0;
        }
    }
    return errno == 0;
}

static int is_plain(const struct stat *found)
{
    return S_ISREG(found->st_mode) && found->MTIME.tv_sec >= -LAST_SECOND && found->MTIME.tv_sec <= LAST_SECOND;
}

static int64_t mtime_ns(const struct stat *found)
{
    return found->MTIME.tv_sec * SECOND_NS + found->MTIME.tv_nsec;
}

/* Look at each file: sizes, then times. */
static int read_numbers(int descriptor, const names *files, int64_t *numbers)
{
    for (size_t n = 0; n < files->count; n++) {
        struct stat found;
        if (fstatat(descriptor, files->sorted[n], &found, AT_SYMLINK_NOFOLLOW) != 0 || !is_plain(&found))
            return 0;
        numbers[n] = found.st_size;
        numbers[files->count + n] = mtime_ns(&found);
    }
    return 1;
}

static int read_directory(const char *path, const char *formats, names *files, names *below, int64_t **numbers)
{
    DIR *directory = opendir(path);
    if (directory == NULL)
        return 0;
    int done = read_entries(directory, formats, files, below) && sort_names(files) && sort_names(below)
        && (*numbers = malloc((2 * files->count + 1) * sizeof **numbers)) != NULL
        && read_numbers(dirfd(directory), files, *numbers);
    closedir(directory);
    return done;
}

static PyObject *joined(const names *of)
{
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)of->length);
    char *to = result == NULL ? NULL : PyBytes_AsString(result);
    for (size_t n = 0; to != NULL && n < of->count; n++) {
        size_t size = strlen(of->sorted[n]) + 1;
        memcpy(to, of->sorted[n], size);
        to += size;
    }
    return result;
}

static PyObject *py_listed(PyObject *module, PyObject *args)
{
    const char *path, *formats;
    Py_ssize_t formats_size;
    names files = {0}, below = {0};
    int64_t *numbers = NULL;
    int done;
    PyObject *result = NULL;
    (void)module;
    if (!PyArg_ParseTuple(args, "yy#", &path, &formats, &formats_size))
        return NULL;
    if (formats_size > 0 && formats[formats_size - 1] != '\0') {
        PyErr_SetString(PyExc_ValueError, "formats have a NUL behind each");
        return NULL;
    }
    Py_BEGIN_ALLOW_THREADS
    done = read_directory(path, formats, &files, &below, &numbers);
    Py_END_ALLOW_THREADS
    if (done)
        result = Py_BuildValue("(NNy#)", joined(&files), joined(&below), (const char *)numbers,
                               (Py_ssize_t)(2 * files.count * sizeof *numbers));
    free_names(&files);
    free_names(&below);
    free(numbers);
    if (done)
        return result;
    Py_RETURN_NONE;
}

static PyObject *py_unchanged(PyObject *module, PyObject *args)
{
    int descriptor, failed;
    const char *name;
    long long size, time;
    struct stat found;
    (void)module;
    if (!PyArg_ParseTuple(args, "iyLL", &descriptor, &name, &size, &time))
        return NULL;
    Py_BEGIN_ALLOW_THREADS
    failed = fstatat(descriptor, name, &found, 0);
    Py_END_ALLOW_THREADS
    if (failed || !is_plain(&found) || found.st_size != size || mtime_ns(&found) != time)
        Py_RETURN_NONE;
    return PyLong_FromLongLong((long long)found.st_dev);
}

static PyMethodDef methods[] = {
    {"listed", py_listed, METH_VARARGS, "List a directory, or say None; see drumline.walk."},
    {"unchanged", py_unchanged, METH_VARARGS, "Return the device of a file that has this size and time, or None."},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_listing", NULL, 0, methods, NULL, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__listing(void)
{
    PyObject *module = PyModule_Create(&definition);
    if (module != NULL && PyModule_AddIntConstant(module, "VERSION", VERSION))
        Py_CLEAR(module);
    return module;
}
