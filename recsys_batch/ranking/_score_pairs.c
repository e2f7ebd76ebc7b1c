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

enum { LANES = 8, BLOCK = 4, GROUP = 4 }; /* a block of hidden units: 4 x 8, which AVX2's registers hold for two candidates, AVX-512's for four */
enum { RETRIEVAL, POPULARITY, SIMILARITY, CANDIDATE_SCORE, OUTPUT, N_ROWS };
enum { AHEAD = 8, CACHE_LINE = 16 }; /* candidates that are fetched before their turn; floats */

typedef struct {
    int64_t n_users, n_candidates, n_session, n_shared, dim, n_hidden, n_items;
    const float *users, *shared, *retrieval, *given, *vectors, *popularity, *norms, *user, *product, *item, *shared_rows, *rows;
    const int64_t *codes, *session;
    float retrieval_mean, retrieval_scale, popularity_mean, popularity_scale;
    /* of the user in hand: the first layer's weights [dim, n_hidden], what its candidates share [n_hidden], its session by lanes [dim, 8] and
     * what is beyond eight items */
    float *weights, *per_user, *session_lanes, *session_vectors, *out;
} Work;

#define load(pointer) (*(const lanes_anywhere *)(pointer))

static inline __attribute__((always_inline)) float add_lanes(const lanes *sum)
{
    const float *s = (const float *)sum;
    return ((s[0] + s[4]) + (s[2] + s[6])) + ((s[1] + s[5]) + (s[3] + s[7]));
}

static inline __attribute__((always_inline)) float at_least_tiny(float length) { return length > FLT_MIN ? length : FLT_MIN; }

/* What is no number stays. */
static inline __attribute__((always_inline)) float larger(float a, float b) { return b > a || b != b ? b : a; }

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

/* Finish the largest product with the session's items as the cosine; `f[SIMILARITY]` has the candidate's length. */
static inline __attribute__((always_inline)) void add_similarity(const Work *w, const lanes *products, const float *x, int64_t n_session, float *f)
{
    const float *product = (const float *)products;
    float best = product[0];
    for (int lane = 1; lane < LANES; lane++)
        best = larger(best, product[lane]);
    for (int64_t s = LANES; s < n_session; s++)
        best = larger(best, dot(w->session_vectors + (s - LANES) * w->dim, x, w->dim));
    f[SIMILARITY] = best / f[SIMILARITY];
}

/* As a macro: a function's value of this type would need the processor's instructions in the base build, too. What is no number stays none. */
#define at_least_0(a) ((lanes)((masks)(a) & ~((a) < (lanes){0})))

/* The part of `n` candidates, at most GROUP, in a block of `size` x 8 hidden units: their activations times the output's weights are added to
 * `sums`. With `is_first`, the products with the session's first eight items come along, in the additions' shadow. */
static inline __attribute__((always_inline)) void add_block(
    const Work *w, int n, const float *const *x, float (*f)[N_ROWS], int64_t first, int size, int is_first, int64_t n_session, lanes *sums)
{
    lanes a[GROUP][BLOCK], s[GROUP];
    const int64_t h = w->n_hidden;
    for (int i = 0; i < n; i++) {
        s[i] = (lanes){0};
        for (int j = 0; j < size; j++)
            a[i][j] = load(w->per_user + first + j * LANES);
    }
    for (int64_t d = 0; d < w->dim; d++) {
        const float *weights = w->weights + d * h + first;
        for (int j = 0; j < size; j++) {
            const lanes weight = load(weights + j * LANES);
            for (int i = 0; i < n; i++)
                a[i][j] += x[i][d] * weight;
        }
        if (is_first) {
            const lanes other = load(w->session_lanes + d * LANES);
            for (int i = 0; i < n; i++)
                s[i] += x[i][d] * other;
        }
    }
    if (is_first)
        for (int i = 0; i < n; i++)
            add_similarity(w, &s[i], x[i], n_session, f[i]);
    for (int row = RETRIEVAL; row <= CANDIDATE_SCORE; row++)
        for (int j = 0; j < size; j++) {
            const lanes weight = load(w->rows + row * h + first + j * LANES);
            for (int i = 0; i < n; i++)
                a[i][j] += f[i][row] * weight;
        }
    for (int j = 0; j < size; j++) {
        const lanes weight = load(w->rows + OUTPUT * h + first + j * LANES);
        for (int i = 0; i < n; i++)
            sums[i] += at_least_0(a[i][j]) * weight;
    }
}

static inline __attribute__((always_inline)) void describe(const Work *w, int64_t user, int64_t candidate, int64_t n_session, float *f)
{
    const int64_t place = user * w->n_candidates + candidate, code = w->codes[place];
    f[RETRIEVAL] = (w->retrieval[place] - w->retrieval_mean) / w->retrieval_scale;
    f[POPULARITY] = (w->popularity[code] - w->popularity_mean) / w->popularity_scale;
    f[CANDIDATE_SCORE] = w->given ? w->given[place] : 0.0f;
    f[SIMILARITY] = n_session ? at_least_tiny(w->norms[code]) : 0.0f; /* what the product is divided by, once that is there */
}

/* Have the session of a user ready at length 1; how many items it has. Lengths are divided by one after the other: the product of two may be
 * out of a float's range where neither of them is. */
static inline __attribute__((always_inline)) int64_t normalise_session(const Work *w, int64_t user)
{
    int64_t n = 0;
    for (int64_t s = 0; s < w->n_session; s++) {
        const int64_t code = w->session[user * w->n_session + s];
        if (code < 0 || !(w->norms[code] > 0))
            continue;
        const float *vector = w->vectors + code * w->dim, norm = at_least_tiny(w->norms[code]);
        for (int64_t d = 0; d < w->dim; d++)
            if (n >= LANES)
                w->session_vectors[(n - LANES) * w->dim + d] = vector[d] / norm;
            else
                /* the first one stands for those that are missing, which changes no maximum */
                for (int64_t lane = n; lane < (n ? n + 1 : LANES); lane++)
                    w->session_lanes[d * LANES + lane] = vector[d] / norm;
        n++;
    }
    return n;
}

/* The first layer's weights of a user's candidates, and what these share in it. */
static inline __attribute__((always_inline)) void prepare_user(const Work *w, int64_t user, int64_t n_session)
{
    const int64_t d = w->dim, h = w->n_hidden;
    const float *u = w->users + user * d, *shared = w->shared + user * w->n_shared;
    for (int64_t j = 0; j < h; j += LANES) {
        lanes sum = load(w->shared_rows + j); /* the bias */
        for (int64_t row = 0; row < d; row++) {
            sum += u[row] * load(w->user + row * h + j);
            *(lanes_anywhere *)(w->weights + row * h + j) = load(w->item + row * h + j) + u[row] * load(w->product + row * h + j);
        }
        for (int64_t row = 0; row < w->n_shared; row++)
            sum += shared[row] * load(w->shared_rows + (2 + row) * h + j);
        if (n_session)
            sum += load(w->shared_rows + h + j);
        *(lanes_anywhere *)(w->per_user + j) = sum;
    }
}

/* What a candidate will be worked out from; without, each waits for memory three times. */
static inline __attribute__((always_inline)) void fetch(const Work *w, int64_t code)
{
    for (int64_t d = 0; d < w->dim; d += CACHE_LINE)
        __builtin_prefetch(w->vectors + code * w->dim + d);
    __builtin_prefetch(w->popularity + code);
    __builtin_prefetch(w->norms + code);
}

/* Score `n` candidates at a time; where fewer are left, the last one stands for those that are missing. */
static inline __attribute__((always_inline)) void score_all(const Work *w, int n)
{
    const int64_t d = w->dim, h = w->n_hidden, c = w->n_candidates;
    for (int64_t user = 0; user < w->n_users; user++) {
        const int64_t *codes = w->codes + user * c;
        for (int64_t ahead = 0; ahead < AHEAD && ahead < c; ahead++)
            fetch(w, codes[ahead]);
        const int64_t n_session = normalise_session(w, user);
        prepare_user(w, user, n_session);
        for (int64_t place = 0; place < c; place += n) {
            for (int64_t ahead = place + AHEAD; ahead < place + AHEAD + n && ahead < c; ahead++)
                fetch(w, codes[ahead]);
            const float *x[GROUP];
            float f[GROUP][N_ROWS];
            lanes sums[GROUP];
            for (int i = 0; i < n; i++) {
                const int64_t candidate = place + i < c ? place + i : c - 1;
                x[i] = w->vectors + codes[candidate] * d;
                describe(w, user, candidate, n_session, f[i]);
                sums[i] = (lanes){0};
            }
            int64_t first = 0;
            if (n_session && h >= BLOCK * LANES) {
                add_block(w, n, x, f, 0, BLOCK, 1, n_session, sums);
                first = BLOCK * LANES;
            } else if (n_session) {
                add_block(w, n, x, f, 0, 1, 1, n_session, sums);
                first = LANES;
            }
            for (; first + BLOCK * LANES <= h; first += BLOCK * LANES)
                add_block(w, n, x, f, first, BLOCK, 0, n_session, sums);
            for (; first < h; first += LANES)
                add_block(w, n, x, f, first, 1, 0, n_session, sums);
            for (int i = 0; i < n && place + i < c; i++)
                w->out[user * c + place + i] = add_lanes(&sums[i]) + f[i][RETRIEVAL];
        }
    }
}

#if defined(__x86_64__)
/* With twice the registers, twice the candidates share a weight that is loaded; the additions and their order are the same. */
__attribute__((target("avx512f,avx512vl,fma"))) static void score_all_avx512(const Work *w) { score_all(w, GROUP); }
__attribute__((target("avx2,fma"))) static void score_all_avx2(const Work *w) { score_all(w, 2); }
#endif
static void score_all_anywhere(const Work *w) { score_all(w, 2); }

static int are_places(const int64_t *codes, int64_t n, int64_t least, int64_t n_items)
{
    for (int64_t i = 0; i < n; i++)
        if (codes[i] < least || codes[i] >= n_items)
            return 0;
    return 1;
}

static PyObject *score(PyObject *module, PyObject *arguments)
{
    Py_buffer users, shared, codes, retrieval, given, session, vectors, popularity, norms, user, product, item, shared_rows, rows, scratch, out;
    Work w = {0};
    if (!PyArg_ParseTuple(
            arguments, "LLLLLLy*y*y*y*z*y*y*y*y*y*y*y*y*y*ffffw*w*", &w.n_users, &w.n_candidates, &w.n_session, &w.n_shared, &w.dim,
            &w.n_hidden, &users, &shared, &codes, &retrieval, &given, &session, &vectors, &popularity, &norms, &user, &product, &item,
            &shared_rows, &rows, &w.retrieval_mean, &w.retrieval_scale, &w.popularity_mean, &w.popularity_scale, &scratch, &out))
        return NULL;
    const Py_ssize_t f = sizeof(float), pairs = w.n_users * w.n_candidates, matrix = w.dim * w.n_hidden * f;
    const Py_ssize_t n_beyond = w.n_session > LANES ? w.n_session - LANES : 0;
    w.n_items = w.dim > 0 ? vectors.len / (w.dim * f) : 0;
    const char *fault = NULL;
    if (w.dim < 1 || w.n_hidden < LANES || w.n_hidden % LANES || w.n_users < 0 || w.n_candidates < 0 || w.n_session < 0 || w.n_shared < 0)
        fault = "sizes are not those of a ranker: dimensions at least 1, hidden units a multiple of 8";
    else if (
        users.len != w.n_users * w.dim * f || shared.len != w.n_users * w.n_shared * f || codes.len != pairs * 8 ||
        retrieval.len != pairs * f || (given.buf && given.len != pairs * f) || session.len != w.n_users * w.n_session * 8 ||
        vectors.len != w.n_items * w.dim * f || popularity.len != w.n_items * f || norms.len != w.n_items * f || user.len != matrix ||
        product.len != matrix || item.len != matrix || shared_rows.len != (2 + w.n_shared) * w.n_hidden * f ||
        rows.len != N_ROWS * w.n_hidden * f || scratch.len < matrix + (w.n_hidden + (LANES + n_beyond) * w.dim) * f || out.len != pairs * f)
        fault = "an array has another length than the sizes say";
    else if (!are_places(codes.buf, pairs, 0, w.n_items) || !are_places(session.buf, w.n_users * w.n_session, -1, w.n_items))
        fault = "a code is no place in the catalogue";
    if (fault == NULL) {
        w.users = users.buf, w.shared = shared.buf, w.codes = codes.buf, w.retrieval = retrieval.buf, w.given = given.buf;
        w.session = session.buf, w.vectors = vectors.buf, w.popularity = popularity.buf, w.norms = norms.buf;
        w.user = user.buf, w.product = product.buf, w.item = item.buf, w.shared_rows = shared_rows.buf, w.rows = rows.buf, w.out = out.buf;
        w.weights = scratch.buf, w.per_user = w.weights + w.dim * w.n_hidden, w.session_lanes = w.per_user + w.n_hidden;
        w.session_vectors = w.session_lanes + LANES * w.dim;
#if defined(__x86_64__)
        if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma"))
            score_all_avx512(&w);
        else if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"))
            score_all_avx2(&w);
        else
#endif
            score_all_anywhere(&w);
    }
    Py_buffer *all[] = {&users, &shared, &codes, &retrieval, &given, &session, &vectors, &popularity,
                        &norms, &user, &product, &item, &shared_rows, &rows, &scratch, &out};
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
