/* Scores of candidates by the reference ranker, from the catalogue's memory in one pass: see pair_kernel.py, which calls it.
 *
 * Each candidate is worked out for itself, in an order of additions that depends on nothing but the weights' sizes: a list of one has the
 * scores that its candidate has among hundreds, bit for bit. The interpreter's lock is kept: what is worked on takes microseconds.
 */
#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030b0000
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>

typedef float lanes __attribute__((vector_size(32)));
typedef int32_t masks __attribute__((vector_size(32)));
typedef float lanes_anywhere __attribute__((vector_size(32), aligned(4)));

enum { LANES = 8, BLOCK = 4 }; /* a block of hidden units: 4 x 8, which a core's registers hold for two candidates */
enum { RETRIEVAL, POPULARITY, SIMILARITY, CANDIDATE_SCORE, OUTPUT, N_ROWS };
enum { AHEAD = 8, CACHE_LINE = 16 }; /* candidates that are fetched before their turn; floats */

typedef struct {
    int64_t n_users, n_candidates, n_session, dim, n_hidden, n_items;
    const float *users, *retrieval, *given, *per_user, *vectors, *popularity, *norms, *product, *item, *rows;
    const int64_t *codes, *session;
    float retrieval_mean, retrieval_scale, popularity_mean, popularity_scale;
    float *weights, *session_vectors, *out;
} Work;

#define load(pointer) (*(const lanes_anywhere *)(pointer))

static inline __attribute__((always_inline)) float add_lanes(const lanes *sum)
{
    const float *s = (const float *)sum;
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static inline __attribute__((always_inline)) float at_least_tiny(float length) { return length > FLT_MIN ? length : FLT_MIN; }

static inline __attribute__((always_inline)) float dot(const float *a, const float *b, int64_t n)
{
    lanes sum = {0};
    int64_t i = 0;
    for (; i + LANES <= n; i += LANES)
        sum += load(a + i) * load(b + i);
    float rest = 0;
    for (; i < n; i++)
        rest += a[i] * b[i];
    return add_lanes(&sum) + rest;
}

/* As a macro: a function's value of this type would need the processor's instructions in the base build, too. What is no number stays none. */
#define at_least_0(a) ((lanes)((masks)(a) & ~((a) < (lanes){0})))

/* One or two candidates' part of a block of `size` x 8 hidden units: its activations times the output's weights are added to `sums`. */
static inline __attribute__((always_inline)) void add_block(
    const Work *w, const float *per_user, const float *x0, const float *x1, const float *f0, const float *f1, int64_t first, int size,
    lanes *sum0, lanes *sum1)
{
    lanes a0[BLOCK], a1[BLOCK];
    const int64_t h = w->n_hidden;
    for (int j = 0; j < size; j++)
        a0[j] = a1[j] = load(per_user + first + j * LANES);
    for (int row = RETRIEVAL; row <= CANDIDATE_SCORE; row++)
        for (int j = 0; j < size; j++) {
            const lanes weight = load(w->rows + row * h + first + j * LANES);
            a0[j] += f0[row] * weight;
            a1[j] += f1[row] * weight;
        }
    for (int64_t d = 0; d < w->dim; d++) {
        const float *weights = w->weights + d * h + first;
        for (int j = 0; j < size; j++) {
            const lanes weight = load(weights + j * LANES);
            a0[j] += x0[d] * weight;
            a1[j] += x1[d] * weight;
        }
    }
    for (int j = 0; j < size; j++) {
        const lanes weight = load(w->rows + OUTPUT * h + first + j * LANES);
        *sum0 += at_least_0(a0[j]) * weight;
        *sum1 += at_least_0(a1[j]) * weight;
    }
}

static inline __attribute__((always_inline)) void describe(
    const Work *w, int64_t user, int64_t candidate, int64_t n_session, const float *x, float *f)
{
    const int64_t place = user * w->n_candidates + candidate, code = w->codes[place];
    f[RETRIEVAL] = (w->retrieval[place] - w->retrieval_mean) / w->retrieval_scale;
    f[POPULARITY] = (w->popularity[code] - w->popularity_mean) / w->popularity_scale;
    f[CANDIDATE_SCORE] = w->given ? w->given[place] : 0.0f;
    float best = -INFINITY;
    for (int64_t s = 0; s < n_session; s++) {
        const float product = dot(w->session_vectors + s * w->dim, x, w->dim);
        best = product > best || product != product ? product : best;
    }
    f[SIMILARITY] = n_session ? best / at_least_tiny(w->norms[code]) : 0.0f;
}

/* The session's vectors at length 1, one after the other; how many there are. Lengths are divided by one after the other: the product of two
 * may be out of a float's range where neither of them is. */
static inline __attribute__((always_inline)) int64_t normalise_session(const Work *w, int64_t user)
{
    int64_t n = 0;
    for (int64_t s = 0; s < w->n_session; s++) {
        const int64_t code = w->session[user * w->n_session + s];
        if (code < 0 || !(w->norms[code] > 0))
            continue;
        for (int64_t d = 0; d < w->dim; d++)
            w->session_vectors[n * w->dim + d] = w->vectors[code * w->dim + d] / at_least_tiny(w->norms[code]);
        n++;
    }
    return n;
}

/* What a candidate will be worked out from; without, each waits for memory three times. */
static inline __attribute__((always_inline)) void fetch(const Work *w, int64_t code)
{
    for (int64_t d = 0; d < w->dim; d += CACHE_LINE)
        __builtin_prefetch(w->vectors + code * w->dim + d);
    __builtin_prefetch(w->popularity + code);
    __builtin_prefetch(w->norms + code);
}

static inline __attribute__((always_inline)) void score_all(const Work *w)
{
    const int64_t d = w->dim, h = w->n_hidden, c = w->n_candidates;
    for (int64_t user = 0; user < w->n_users; user++) {
        const float *u = w->users + user * d, *per_user = w->per_user + user * h;
        const int64_t *codes = w->codes + user * c;
        for (int64_t ahead = 0; ahead < AHEAD && ahead < c; ahead++)
            fetch(w, codes[ahead]);
        const int64_t n_session = normalise_session(w, user);
        for (int64_t row = 0; row < d; row++)
            for (int64_t j = 0; j < h; j += LANES)
                *(lanes_anywhere *)(w->weights + row * h + j) = load(w->item + row * h + j) + u[row] * load(w->product + row * h + j);
        for (int64_t place = 0; place < c; place += 2) {
            const int64_t second = place + 1 < c ? place + 1 : place;
            for (int64_t ahead = place + AHEAD; ahead < place + AHEAD + 2 && ahead < c; ahead++)
                fetch(w, codes[ahead]);
            const float *x0 = w->vectors + codes[place] * d, *x1 = w->vectors + codes[second] * d;
            float f0[N_ROWS], f1[N_ROWS];
            describe(w, user, place, n_session, x0, f0);
            describe(w, user, second, n_session, x1, f1);
            lanes sum0 = {0}, sum1 = {0};
            int64_t first = 0;
            for (; first + BLOCK * LANES <= h; first += BLOCK * LANES)
                add_block(w, per_user, x0, x1, f0, f1, first, BLOCK, &sum0, &sum1);
            for (; first < h; first += LANES)
                add_block(w, per_user, x0, x1, f0, f1, first, 1, &sum0, &sum1);
            w->out[user * c + place] = add_lanes(&sum0) + f0[RETRIEVAL];
            w->out[user * c + second] = add_lanes(&sum1) + f1[RETRIEVAL];
        }
    }
}

#if defined(__x86_64__)
__attribute__((target("avx2,fma"))) static void score_all_avx2(const Work *w) { score_all(w); }
#endif
static void score_all_anywhere(const Work *w) { score_all(w); }

static int are_places(const int64_t *codes, int64_t n, int64_t least, int64_t n_items)
{
    for (int64_t i = 0; i < n; i++)
        if (codes[i] < least || codes[i] >= n_items)
            return 0;
    return 1;
}

static PyObject *score(PyObject *module, PyObject *arguments)
{
    Py_buffer users, codes, retrieval, given, session, per_user, vectors, popularity, norms, product, item, rows, scratch, out;
    Work w = {0};
    if (!PyArg_ParseTuple(
            arguments, "LLLLLy*y*y*z*y*y*y*y*y*y*y*y*ffffw*w*", &w.n_users, &w.n_candidates, &w.n_session, &w.dim, &w.n_hidden, &users,
            &codes, &retrieval, &given, &session, &per_user, &vectors, &popularity, &norms, &product, &item, &rows, &w.retrieval_mean,
            &w.retrieval_scale, &w.popularity_mean, &w.popularity_scale, &scratch, &out))
        return NULL;
    const Py_ssize_t f = sizeof(float), pairs = w.n_users * w.n_candidates;
    w.n_items = w.dim > 0 ? vectors.len / (w.dim * f) : 0;
    const char *fault = NULL;
    if (w.dim < 1 || w.n_hidden < LANES || w.n_hidden % LANES || w.n_users < 0 || w.n_candidates < 0 || w.n_session < 0)
        fault = "sizes are not those of a ranker: dimensions at least 1, hidden units a multiple of 8";
    else if (
        users.len != w.n_users * w.dim * f || codes.len != pairs * 8 || retrieval.len != pairs * f || (given.buf && given.len != pairs * f) ||
        session.len != w.n_users * w.n_session * 8 || per_user.len != w.n_users * w.n_hidden * f || vectors.len != w.n_items * w.dim * f ||
        popularity.len != w.n_items * f || norms.len != w.n_items * f || product.len != w.dim * w.n_hidden * f ||
        item.len != w.dim * w.n_hidden * f || rows.len != N_ROWS * w.n_hidden * f || scratch.len < w.dim * (w.n_hidden + w.n_session) * f ||
        out.len != pairs * f)
        fault = "an array has another length than the sizes say";
    else if (!are_places(codes.buf, pairs, 0, w.n_items) || !are_places(session.buf, w.n_users * w.n_session, -1, w.n_items))
        fault = "a code is no place in the catalogue";
    if (fault == NULL) {
        w.users = users.buf, w.codes = codes.buf, w.retrieval = retrieval.buf, w.given = given.buf, w.session = session.buf;
        w.per_user = per_user.buf, w.vectors = vectors.buf, w.popularity = popularity.buf, w.norms = norms.buf;
        w.product = product.buf, w.item = item.buf, w.rows = rows.buf, w.weights = scratch.buf, w.session_vectors = w.weights + w.dim * w.n_hidden;
        w.out = out.buf;
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            score_all_avx2(&w);
        else
#endif
            score_all_anywhere(&w);
    }
    Py_buffer *all[] = {&users, &codes, &retrieval, &given, &session, &per_user, &vectors, &popularity, &norms, &product, &item, &rows, &scratch, &out};
    for (size_t i = 0; i < sizeof(all) / sizeof(*all); i++)
        PyBuffer_Release(all[i]);
    if (fault != NULL) {
        PyErr_SetString(PyExc_ValueError, fault);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {{"score", score, METH_VARARGS, "Score pairs of users and candidates into the last argument."}, {NULL}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_score_pairs", NULL, -1, methods};

PyMODINIT_FUNC PyInit__score_pairs(void) { return PyModule_Create(&definition); }
