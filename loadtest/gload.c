/*
 * gload: a unary gRPC load client on libnghttp2 that costs little CPU and believes nothing it has not checked.
 *
 * The flow: read the request bodies, open the connections, then one epoll loop. A call takes the next body, and when
 * its stream closes, its HTTP status, its grpc-status, the framing of its answer and (with --all-equal) a field inside
 * the answer are checked before it counts.
 *
 *   closed loop  --in-flight N   N calls are always under way; a call that ends starts the next. Latency is measured
 *                                from the moment of sending.
 *   open loop    --rate R        call i is due at start + i / R whatever the server does. Latency is measured from the
 *                                moment a call was due, not from when it could be sent, so that a server which stalls
 *                                cannot hide the calls it kept from being sent (coordinated omission). Calls that are
 *                                unfinished at the end count with the time they have waited so far.
 *
 * Invariants: every call ends exactly once, in `call_ended` or `connection_lost`; memory is bounded by --in-flight and
 * the histogram's fixed size; a failed call never enters the latency histogram.
 *
 * Build: cc -O2 gload.c -lnghttp2                          (Debian: libnghttp2-dev)
 *        cc -O2 -DGLOAD_TLS gload.c -lnghttp2 -lssl -lcrypto   for --tls-ca (Debian: also libssl-dev)
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <nghttp2/nghttp2.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>
#ifdef GLOAD_TLS
#include <openssl/err.h>
#include <openssl/ssl.h>
#endif

enum {
    GRPC_PREFIX_BYTES = 5,
    PATH_DEPTH_MAX = 8,
    EVENTS_MAX = 64,
    RECEIVE_BYTES = 1 << 18,
    SEND_BYTES = 1 << 18,
    STREAM_WINDOW_BYTES = 1 << 22,
    CONNECTION_WINDOW_BYTES = 1 << 28,
    OPEN_LOOP_IN_FLIGHT = 10000,
};
static const double DRAIN_S = 8.0;
static const uint64_t NS_PER_S = 1000000000ull;

static void die(const char *what) {
    fprintf(stderr, "gload: %s\n", what);
    exit(2);
}

static void die_errno(const char *what) {
    fprintf(stderr, "gload: %s: %s\n", what, strerror(errno));
    exit(2);
}

static void *allocate(size_t count, size_t size) {
    void *memory = calloc(count, size);
    if (!memory) die("out of memory");
    return memory;
}

static uint64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (uint64_t)t.tv_sec * NS_PER_S + (uint64_t)t.tv_nsec;
}

/* ---- Histogram: log-linear, 256 steps for every doubling, so a percentile is off by at most 0.2%. ---- */

enum { STEP_BITS = 8, STEPS = 1 << STEP_BITS, VALUE_BITS = 42, BUCKETS = (VALUE_BITS - STEP_BITS + 1) * STEPS };

struct histogram {
    uint64_t counts[BUCKETS];
    uint64_t total;
    uint64_t max_ns;
    double sum_ns;
};

static unsigned bucket_of(uint64_t value_ns) {
    uint64_t limit = (1ull << VALUE_BITS) - 1;
    if (value_ns > limit) value_ns = limit;
    if (value_ns < STEPS) return (unsigned)value_ns;
    unsigned shift = 63 - (unsigned)__builtin_clzll(value_ns) - STEP_BITS;
    return (shift << STEP_BITS) + (unsigned)(value_ns >> shift);
}

/* The middle of a bucket. */
static double bucket_ns(unsigned bucket) {
    if (bucket < 2 * STEPS) return bucket;
    unsigned shift = (bucket >> STEP_BITS) - 1;
    uint64_t steps = bucket - (shift << STEP_BITS);
    return (double)(steps << shift) + (double)(1ull << shift) / 2;
}

static void histogram_add(struct histogram *h, uint64_t value_ns) {
    h->counts[bucket_of(value_ns)]++;
    h->total++;
    h->sum_ns += (double)value_ns;
    if (value_ns > h->max_ns) h->max_ns = value_ns;
}

static double percentile_ms(const struct histogram *h, double fraction) {
    if (!h->total) return 0;
    uint64_t rank = (uint64_t)(fraction * (double)(h->total - 1)) + 1;
    uint64_t seen = 0;
    for (unsigned i = 0; i < BUCKETS; i++) {
        seen += h->counts[i];
        if (seen >= rank) return bucket_ns(i) / 1e6;
    }
    return (double)h->max_ns / 1e6;
}

/* ---- What is asked for ---- */

struct options {
    const char *host;
    int port;
    const char *unix_path;
    const char *method;
    const char *bodies_path;
    const char *tls_ca;
    int connections;
    int in_flight;
    double rate; /* calls a second; 0 is the closed loop */
    double seconds;
    double warmup_s;
    int timeout_ms; /* sent as grpc-timeout; 0 sends none */
    bool print_histogram;
    uint32_t path[PATH_DEPTH_MAX]; /* --all-equal 5.3=1: the field numbers */
    int path_depth;
    uint8_t path_byte;
};
static struct options options = {
    .host = "127.0.0.1", .connections = 1, .seconds = 5, .warmup_s = 0.5,
};

struct body {
    uint8_t *bytes; /* with the gRPC length prefix */
    size_t size;
};
static struct body *bodies;
static size_t bodies_count, bodies_next;

/* ---- What happened ---- */

enum failure { FAILED_HTTP = 17, FAILED_NO_STATUS, FAILED_RESET, FAILED_FRAMING, FAILED_CONTENT, FAILED_CONNECTION, FAILURES };
static const char *const failure_names[FAILURES] = {
    "OK", "CANCELLED", "UNKNOWN", "INVALID_ARGUMENT", "DEADLINE_EXCEEDED", "NOT_FOUND", "ALREADY_EXISTS",
    "PERMISSION_DENIED", "RESOURCE_EXHAUSTED", "FAILED_PRECONDITION", "ABORTED", "OUT_OF_RANGE", "UNIMPLEMENTED",
    "INTERNAL", "UNAVAILABLE", "DATA_LOSS", "UNAUTHENTICATED",
    "http_status", "no_grpc_status", "stream_reset", "bad_framing", "unexpected_content", "connection_lost",
};

static struct {
    uint64_t total;          /* calls that ended, warm-up included */
    uint64_t ok;             /* good answers inside the measured window */
    uint64_t failed;         /* at any time: a failure in the warm-up is one too */
    uint64_t failures[FAILURES];
    uint64_t answer_bytes;
    struct histogram latency;
    struct histogram send_lag; /* open loop: how late this client itself was */
} result;

/* ---- Calls and connections ---- */

struct call {
    struct connection *connection;
    const struct body *body;
    size_t body_sent;
    uint64_t started_ns; /* open loop: when it was due */
    int http_status;
    int grpc_status; /* -1: none came */
    uint8_t *answer; /* kept from call to call */
    size_t answer_size, answer_capacity;
    struct call *next, *previous; /* of the connection's calls under way, or `next` of the free ones */
};

struct connection {
    int fd;
    bool dead;
    bool wants_write;
    nghttp2_session *session;
    struct call *calls;
    uint8_t *out;
    size_t out_size, out_sent;
#ifdef GLOAD_TLS
    SSL *ssl;
#endif
};

static struct connection *connections;
static struct call *free_calls;
static int epoll_fd, in_flight, alive;
static uint64_t measure_from_ns, measure_until_ns;
static char authority[128], grpc_timeout[32];

static struct call *call_take(struct connection *connection) {
    struct call *call = free_calls;
    if (call) {
        free_calls = call->next;
    } else {
        call = allocate(1, sizeof *call);
    }
    call->connection = connection;
    call->next = connection->calls;
    call->previous = NULL;
    if (call->next) call->next->previous = call;
    connection->calls = call;
    in_flight++;
    return call;
}

static void call_release(struct call *call) {
    if (call->previous) call->previous->next = call->next;
    else call->connection->calls = call->next;
    if (call->next) call->next->previous = call->previous;
    call->next = free_calls;
    free_calls = call;
    in_flight--;
}

/* ---- Checking an answer ---- */

static bool read_varint(const uint8_t **at, const uint8_t *end, uint64_t *value) {
    *value = 0;
    for (unsigned shift = 0; *at < end && shift < 64; shift += 7) {
        uint8_t byte = *(*at)++;
        *value |= (uint64_t)(byte & 0x7f) << shift;
        if (byte < 0x80) return true;
    }
    return false;
}

/* Walks a protobuf message; false when it is malformed or a byte of the field at `path` is not `want`. */
static bool field_is(const uint8_t *at, const uint8_t *end, const uint32_t *path, int depth, uint8_t want, size_t *seen) {
    while (at < end) {
        uint64_t tag, size;
        if (!read_varint(&at, end, &tag)) return false;
        switch (tag & 7) {
        case 0:
            if (!read_varint(&at, end, &size)) return false;
            continue;
        case 1: size = 8; break;
        case 2:
            if (!read_varint(&at, end, &size)) return false;
            break;
        case 5: size = 4; break;
        default: return false;
        }
        if (size > (uint64_t)(end - at)) return false;
        if ((tag & 7) == 2 && tag >> 3 == path[0]) {
            if (depth > 1) {
                if (!field_is(at, at + size, path + 1, depth - 1, want, seen)) return false;
            } else {
                for (uint64_t i = 0; i < size; i++)
                    if (at[i] != want) return false;
                *seen += size;
            }
        }
        at += size;
    }
    return true;
}

/* 0 for a good answer, else the reason. */
static int judge(const struct call *call, uint32_t reset_code) {
    if (call->grpc_status > 0 && call->grpc_status <= 16) return call->grpc_status;
    if (reset_code) return FAILED_RESET;
    if (call->http_status != 200) return FAILED_HTTP;
    if (call->grpc_status != 0) return FAILED_NO_STATUS;
    const uint8_t *a = call->answer;
    if (call->answer_size < GRPC_PREFIX_BYTES || a[0] != 0) return FAILED_FRAMING;
    uint32_t size = (uint32_t)a[1] << 24 | (uint32_t)a[2] << 16 | (uint32_t)a[3] << 8 | a[4];
    if (size != call->answer_size - GRPC_PREFIX_BYTES) return FAILED_FRAMING;
    if (options.path_depth) {
        size_t seen = 0;
        const uint8_t *end = a + call->answer_size;
        if (!field_is(a + GRPC_PREFIX_BYTES, end, options.path, options.path_depth, options.path_byte, &seen) || !seen)
            return FAILED_CONTENT;
    }
    return 0;
}

static void count_failure(int reason) {
    result.failed++;
    result.failures[reason]++;
}

/* A closed loop measures what ends inside the window, an open loop what was due inside it. */
static bool is_measured(const struct call *call, uint64_t ended_ns) {
    uint64_t at = options.rate > 0 ? call->started_ns : ended_ns;
    return at >= measure_from_ns && at < measure_until_ns;
}

static void call_ended(struct call *call, uint32_t reset_code, uint64_t ended_ns) {
    int reason = judge(call, reset_code);
    result.total++;
    result.answer_bytes += call->answer_size;
    if (reason) {
        count_failure(reason);
    } else if (is_measured(call, ended_ns)) {
        result.ok++;
        histogram_add(&result.latency, ended_ns - call->started_ns);
    }
    call_release(call);
}

/* ---- nghttp2 ---- */

static ssize_t read_body(nghttp2_session *session, int32_t stream, uint8_t *buffer, size_t size, uint32_t *flags,
                         nghttp2_data_source *source, void *user) {
    (void)session, (void)stream, (void)user;
    struct call *call = source->ptr;
    size_t left = call->body->size - call->body_sent;
    if (size > left) size = left;
    memcpy(buffer, call->body->bytes + call->body_sent, size);
    call->body_sent += size;
    if (size == left) *flags |= NGHTTP2_DATA_FLAG_EOF;
    return (ssize_t)size;
}

static int on_header(nghttp2_session *session, const nghttp2_frame *frame, const uint8_t *name, size_t name_size,
                     const uint8_t *value, size_t value_size, uint8_t flags, void *user) {
    (void)value_size, (void)flags, (void)user;
    struct call *call = nghttp2_session_get_stream_user_data(session, frame->hd.stream_id);
    if (!call) return 0;
    /* nghttp2 ends every value with a zero byte. */
    if (name_size == 11 && !memcmp(name, "grpc-status", 11)) call->grpc_status = atoi((const char *)value);
    else if (name_size == 7 && !memcmp(name, ":status", 7)) call->http_status = atoi((const char *)value);
    return 0;
}

static int on_data(nghttp2_session *session, uint8_t flags, int32_t stream, const uint8_t *data, size_t size, void *user) {
    (void)flags, (void)user;
    struct call *call = nghttp2_session_get_stream_user_data(session, stream);
    if (!call) return 0;
    if (call->answer_size + size > call->answer_capacity) {
        call->answer_capacity = 2 * (call->answer_size + size);
        call->answer = realloc(call->answer, call->answer_capacity);
        if (!call->answer) die("out of memory");
    }
    memcpy(call->answer + call->answer_size, data, size);
    call->answer_size += size;
    return 0;
}

static void start_call(struct connection *connection, uint64_t started_ns);

static int on_stream_close(nghttp2_session *session, int32_t stream, uint32_t reset_code, void *user) {
    struct connection *connection = user;
    struct call *call = nghttp2_session_get_stream_user_data(session, stream);
    if (!call) return 0;
    uint64_t at = now_ns();
    call_ended(call, reset_code, at);
    if (options.rate == 0 && at < measure_until_ns && !connection->dead) start_call(connection, at);
    return 0;
}

#define HEADER(name, value) {(uint8_t *)(name), (uint8_t *)(value), sizeof(name) - 1, strlen(value), NGHTTP2_NV_FLAG_NONE}

static void start_call(struct connection *connection, uint64_t started_ns) {
    struct call *call = call_take(connection);
    call->body = &bodies[bodies_next];
    bodies_next = (bodies_next + 1) % bodies_count;
    call->body_sent = call->answer_size = 0;
    call->started_ns = started_ns;
    call->http_status = 0;
    call->grpc_status = -1;
    nghttp2_nv headers[] = {
        HEADER(":method", "POST"),
        HEADER(":scheme", options.tls_ca ? "https" : "http"),
        HEADER(":path", options.method),
        HEADER(":authority", authority),
        HEADER("te", "trailers"),
        HEADER("content-type", "application/grpc"),
        HEADER("user-agent", "gload"),
        HEADER("grpc-timeout", grpc_timeout), /* last, so that it can be left out */
    };
    size_t count = sizeof headers / sizeof *headers - (options.timeout_ms ? 0 : 1);
    nghttp2_data_provider provider = {.source.ptr = call, .read_callback = read_body};
    if (nghttp2_submit_request(connection->session, NULL, headers, count, &provider, call) < 0) {
        /* The connection takes no more calls: the server has sent GOAWAY. */
        result.total++;
        count_failure(FAILED_CONNECTION);
        call_release(call);
    }
}

/* ---- The socket, plain or TLS ---- */

enum { WOULD_BLOCK = -1, CLOSED = -2 };

static ssize_t socket_result(ssize_t n) {
    if (n > 0) return n;
    return n < 0 && (errno == EAGAIN || errno == EINTR) ? WOULD_BLOCK : CLOSED;
}

#ifdef GLOAD_TLS
static ssize_t tls_result(SSL *ssl, int n) {
    if (n > 0) return n;
    int error = SSL_get_error(ssl, n);
    ERR_clear_error();
    return error == SSL_ERROR_WANT_READ || error == SSL_ERROR_WANT_WRITE ? WOULD_BLOCK : CLOSED;
}

static void tls_connect(struct connection *connection) {
    static SSL_CTX *context;
    if (!context) {
        context = SSL_CTX_new(TLS_client_method());
        if (!context || SSL_CTX_load_verify_locations(context, options.tls_ca, NULL) != 1) die("cannot read --tls-ca");
        SSL_CTX_set_verify(context, SSL_VERIFY_PEER, NULL);
        SSL_CTX_set_mode(context, SSL_MODE_ENABLE_PARTIAL_WRITE | SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER);
        SSL_CTX_set_alpn_protos(context, (const uint8_t *)"\x02h2", 3);
    }
    connection->ssl = SSL_new(context);
    SSL_set_tlsext_host_name(connection->ssl, "localhost");
    SSL_set1_host(connection->ssl, "localhost");
    SSL_set_fd(connection->ssl, connection->fd);
    if (SSL_connect(connection->ssl) != 1) {
        ERR_print_errors_fp(stderr);
        die("the TLS handshake failed");
    }
}
#endif

static ssize_t receive(struct connection *connection, uint8_t *buffer, size_t size) {
#ifdef GLOAD_TLS
    if (connection->ssl) return tls_result(connection->ssl, SSL_read(connection->ssl, buffer, (int)size));
#endif
    return socket_result(recv(connection->fd, buffer, size, 0));
}

static ssize_t transmit(struct connection *connection, const uint8_t *buffer, size_t size) {
#ifdef GLOAD_TLS
    if (connection->ssl) return tls_result(connection->ssl, SSL_write(connection->ssl, buffer, (int)size));
#endif
    return socket_result(send(connection->fd, buffer, size, MSG_NOSIGNAL));
}

static int open_socket(void) {
    int fd;
    if (options.unix_path) {
        struct sockaddr_un address = {.sun_family = AF_UNIX};
        if (strlen(options.unix_path) >= sizeof address.sun_path) die("--unix: the path is too long");
        strcpy(address.sun_path, options.unix_path);
        fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) die_errno("cannot connect");
    } else {
        struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)options.port)};
        if (inet_pton(AF_INET, options.host, &address.sin_addr) != 1) die("--host must be an IPv4 address");
        fd = socket(AF_INET, SOCK_STREAM, 0);
        if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof address)) die_errno("cannot connect");
        int on = 1;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    }
    return fd;
}

static void watch(struct connection *connection, int operation) {
    struct epoll_event event = {
        .events = EPOLLIN | (connection->wants_write ? EPOLLOUT : 0),
        .data.ptr = connection,
    };
    epoll_ctl(epoll_fd, operation, connection->fd, &event);
}

static void connection_open(struct connection *connection, const nghttp2_session_callbacks *callbacks) {
    connection->fd = open_socket();
    connection->out = allocate(1, SEND_BYTES);
#ifdef GLOAD_TLS
    if (options.tls_ca) tls_connect(connection);
#endif
    fcntl(connection->fd, F_SETFL, O_NONBLOCK);
    nghttp2_session_client_new(&connection->session, callbacks, connection);
    nghttp2_settings_entry settings[] = {
        {NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE, STREAM_WINDOW_BYTES},
        {NGHTTP2_SETTINGS_ENABLE_PUSH, 0},
    };
    nghttp2_submit_settings(connection->session, NGHTTP2_FLAG_NONE, settings, 2);
    nghttp2_session_set_local_window_size(connection->session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW_BYTES);
    watch(connection, EPOLL_CTL_ADD);
    alive++;
}

static void connection_lost(struct connection *connection) {
    connection->dead = true;
    alive--;
    while (connection->calls) {
        result.total++;
        count_failure(FAILED_CONNECTION);
        call_release(connection->calls);
    }
    epoll_ctl(epoll_fd, EPOLL_CTL_DEL, connection->fd, NULL);
    close(connection->fd);
}

/* Gathers the frames that are due into few large writes, as real clients do. */
static void flush(struct connection *connection) {
    if (connection->dead) return;
    for (;;) {
        const uint8_t *frame;
        ssize_t size = 0;
        /* A frame is at most 16 KiB here; it is only asked for while it surely fits. */
        while (connection->out_size + (1 << 15) < SEND_BYTES) {
            size = nghttp2_session_mem_send(connection->session, &frame);
            if (size <= 0) break;
            memcpy(connection->out + connection->out_size, frame, (size_t)size);
            connection->out_size += (size_t)size;
        }
        if (size < 0) {
            connection_lost(connection);
            return;
        }
        if (connection->out_sent == connection->out_size) break;
        ssize_t sent = transmit(connection, connection->out + connection->out_sent, connection->out_size - connection->out_sent);
        if (sent == CLOSED) {
            connection_lost(connection);
            return;
        }
        if (sent == WOULD_BLOCK) break;
        connection->out_sent += (size_t)sent;
        if (connection->out_sent == connection->out_size) connection->out_sent = connection->out_size = 0;
    }
    bool wants_write = connection->out_sent < connection->out_size;
    if (wants_write != connection->wants_write) {
        connection->wants_write = wants_write;
        watch(connection, EPOLL_CTL_MOD);
    }
    if (!nghttp2_session_want_read(connection->session) && !nghttp2_session_want_write(connection->session))
        connection_lost(connection);
}

static void on_readable(struct connection *connection) {
    static uint8_t buffer[RECEIVE_BYTES];
    for (;;) {
        ssize_t size = receive(connection, buffer, sizeof buffer);
        if (size == WOULD_BLOCK) return;
        if (size == CLOSED || nghttp2_session_mem_recv(connection->session, buffer, (size_t)size) < 0) {
            connection_lost(connection);
            return;
        }
        /* A TLS record is smaller than the buffer, so only a plain socket shows by a short read that it is empty. */
        if (!options.tls_ca && (size_t)size < sizeof buffer) return;
    }
}

/* ---- The open loop's schedule ---- */

static struct {
    uint64_t start_ns;
    uint64_t count, next;
    int timer_fd;
} schedule;

static uint64_t due_ns(uint64_t index) {
    return schedule.start_ns + (uint64_t)((double)index / options.rate * 1e9);
}

static void arm_timer(void) {
    if (schedule.next >= schedule.count) return;
    uint64_t at = due_ns(schedule.next);
    struct itimerspec when = {.it_value = {.tv_sec = (time_t)(at / NS_PER_S), .tv_nsec = (long)(at % NS_PER_S)}};
    timerfd_settime(schedule.timer_fd, TFD_TIMER_ABSTIME, &when, NULL);
}

/* Sends what is due. Past --in-flight calls the rest waits here, its clock running. */
static void send_due(void) {
    uint64_t now = now_ns();
    while (schedule.next < schedule.count && due_ns(schedule.next) <= now && in_flight < options.in_flight && alive) {
        struct connection *connection = &connections[schedule.next % (uint64_t)options.connections];
        while (connection->dead) connection = &connections[(connection - connections + 1) % options.connections];
        uint64_t due = due_ns(schedule.next++);
        if (due >= measure_from_ns) histogram_add(&result.send_lag, now - due);
        start_call(connection, due);
    }
    for (int i = 0; i < options.connections; i++) flush(&connections[i]);
    arm_timer();
}

/* Calls without an answer have waited at least until now; leaving them out would flatter the server. */
static uint64_t count_unfinished(void) {
    uint64_t now = now_ns(), unfinished = 0;
    for (int i = 0; i < options.connections; i++)
        for (struct call *call = connections[i].dead ? NULL : connections[i].calls; call; call = call->next) {
            unfinished++;
            if (options.rate > 0) histogram_add(&result.latency, now - call->started_ns);
        }
    for (; schedule.next < schedule.count && due_ns(schedule.next) < now; schedule.next++) {
        unfinished++;
        histogram_add(&result.latency, now - due_ns(schedule.next));
    }
    return unfinished;
}

/* ---- Set up, run, report ---- */

static void read_bodies(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) die_errno(path);
    size_t capacity = 1024;
    bodies = allocate(capacity, sizeof *bodies);
    uint8_t prefix[4];
    while (fread(prefix, 1, sizeof prefix, file) == sizeof prefix) {
        uint32_t size = prefix[0] | (uint32_t)prefix[1] << 8 | (uint32_t)prefix[2] << 16 | (uint32_t)prefix[3] << 24;
        if (bodies_count == capacity) {
            capacity *= 2;
            bodies = realloc(bodies, capacity * sizeof *bodies);
            if (!bodies) die("out of memory");
        }
        uint8_t *bytes = allocate(1, (size_t)size + GRPC_PREFIX_BYTES);
        for (int i = 0; i < 4; i++) bytes[1 + i] = (uint8_t)(size >> (24 - 8 * i));
        if (fread(bytes + GRPC_PREFIX_BYTES, 1, size, file) != size) die("--bodies: the file ends inside a body");
        bodies[bodies_count++] = (struct body){bytes, (size_t)size + GRPC_PREFIX_BYTES};
    }
    fclose(file);
    if (!bodies_count) die("--bodies: the file is empty");
    /* Every run starts elsewhere, so that no run is lucky with its ids. */
    srand((unsigned)(now_ns() ^ (uint64_t)getpid()));
    bodies_next = (size_t)rand() % bodies_count;
}

static void parse_all_equal(char *text) {
    char *equals = strchr(text, '=');
    if (!equals) die("--all-equal takes FIELD[.FIELD]=BYTE");
    *equals = 0;
    options.path_byte = (uint8_t)strtoul(equals + 1, NULL, 0);
    for (char *field = strtok(text, "."); field; field = strtok(NULL, ".")) {
        if (options.path_depth == PATH_DEPTH_MAX) die("--all-equal: the path is too deep");
        options.path[options.path_depth++] = (uint32_t)strtoul(field, NULL, 10);
    }
}

static const char usage[] =
    "gload --port N | --unix PATH  --method /package.Service/Method  --bodies FILE\n"
    "  --in-flight N     closed loop: calls under way (with --rate: the most at a time, 10000)\n"
    "  --rate R          open loop: calls a second, due at a constant rate\n"
    "  --connections N   1\n"
    "  --seconds S       measured, 5\n"
    "  --warmup S        before it, 0.5\n"
    "  --timeout-ms N    the calls' deadline, sent as grpc-timeout\n"
    "  --all-equal P=B   every byte of the answer's field at path P is B (5.3=1), else the call has failed\n"
    "  --tls-ca FILE     TLS to a server whose certificate for `localhost` this CA signed\n"
    "  --histogram       add [milliseconds, calls] pairs to the answer\n"
    "  --host ADDRESS    127.0.0.1\n"
    "FILE is a concatenation of [u32 little-endian length][protobuf bytes]; calls take them round robin from a random\n"
    "start. Prints one line of JSON; exits 1 when a call has failed or none was answered, 2 when it could not run.\n";

static void parse_options(int argc, char **argv) {
    static const struct option names[] = {
        {"host", 1, 0, 'h'},       {"port", 1, 0, 'p'},      {"unix", 1, 0, 'u'},       {"method", 1, 0, 'm'},
        {"bodies", 1, 0, 'b'},     {"tls-ca", 1, 0, 'T'},    {"connections", 1, 0, 'c'}, {"in-flight", 1, 0, 'n'},
        {"rate", 1, 0, 'r'},       {"seconds", 1, 0, 's'},   {"warmup", 1, 0, 'w'},     {"timeout-ms", 1, 0, 't'},
        {"all-equal", 1, 0, 'e'},  {"histogram", 0, 0, 'H'}, {0, 0, 0, 0},
    };
    for (int name; (name = getopt_long(argc, argv, "", names, NULL)) != -1;) {
        switch (name) {
        case 'h': options.host = optarg; break;
        case 'p': options.port = atoi(optarg); break;
        case 'u': options.unix_path = optarg; break;
        case 'm': options.method = optarg; break;
        case 'b': options.bodies_path = optarg; break;
        case 'T': options.tls_ca = optarg; break;
        case 'c': options.connections = atoi(optarg); break;
        case 'n': options.in_flight = atoi(optarg); break;
        case 'r': options.rate = atof(optarg); break;
        case 's': options.seconds = atof(optarg); break;
        case 'w': options.warmup_s = atof(optarg); break;
        case 't': options.timeout_ms = atoi(optarg); break;
        case 'e': parse_all_equal(optarg); break;
        case 'H': options.print_histogram = true; break;
        default: fputs(usage, stderr); exit(2);
        }
    }
    if (!options.in_flight) options.in_flight = options.rate > 0 ? OPEN_LOOP_IN_FLIGHT : 1;
    bool has_address = options.unix_path || options.port > 0;
    bool is_sane = options.connections > 0 && options.in_flight > 0 && options.rate >= 0 && options.seconds > 0 &&
                   options.warmup_s >= 0 && options.timeout_ms >= 0;
    if (!has_address || !options.method || !options.bodies_path || !is_sane) {
        fputs(usage, stderr);
        exit(2);
    }
#ifndef GLOAD_TLS
    if (options.tls_ca) die("this binary was built without TLS (-DGLOAD_TLS)");
#endif
    if (options.rate == 0 && options.connections > options.in_flight) options.connections = options.in_flight;
    /* A certificate is for `localhost`, so that is what a TLS call asks for. */
    const char *host = options.unix_path || options.tls_ca ? "localhost" : options.host;
    snprintf(authority, sizeof authority, options.port ? "%s:%d" : "%s", host, options.port);
    snprintf(grpc_timeout, sizeof grpc_timeout, "%dm", options.timeout_ms);
}

static void open_connections(void) {
    nghttp2_session_callbacks *callbacks;
    nghttp2_session_callbacks_new(&callbacks);
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header);
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_data);
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close);
    connections = allocate((size_t)options.connections, sizeof *connections);
    for (int i = 0; i < options.connections; i++) connection_open(&connections[i], callbacks);
    nghttp2_session_callbacks_del(callbacks);
}

static void start_closed_loop(void) {
    for (int i = 0; i < options.in_flight; i++) start_call(&connections[i % options.connections], now_ns());
    for (int i = 0; i < options.connections; i++) flush(&connections[i]);
}

static void start_open_loop(uint64_t start_ns) {
    schedule.start_ns = start_ns;
    schedule.count = (uint64_t)(options.rate * (options.warmup_s + options.seconds));
    schedule.timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (schedule.timer_fd < 0) die_errno("timerfd_create");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, schedule.timer_fd, &event);
    arm_timer();
}

static void run_loop(void) {
    uint64_t give_up_ns = measure_until_ns + (uint64_t)(DRAIN_S * 1e9);
    struct epoll_event events[EVENTS_MAX];
    for (;;) {
        uint64_t now = now_ns();
        bool nothing_left = in_flight == 0 && schedule.next >= schedule.count;
        if (!alive || now >= give_up_ns || (now >= measure_until_ns && nothing_left)) return;
        int count = epoll_wait(epoll_fd, events, EVENTS_MAX, 100);
        for (int i = 0; i < count; i++) {
            struct connection *connection = events[i].data.ptr;
            if (!connection) {
                uint64_t expirations;
                if (read(schedule.timer_fd, &expirations, sizeof expirations) < 0) continue;
            } else if (!connection->dead) {
                if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) on_readable(connection);
                flush(connection);
            }
        }
        if (options.rate > 0) send_due();
    }
}

static void print_histogram(void) {
    const char *separator = "";
    printf(",\"histogram_ms\":[");
    for (unsigned i = 0; i < BUCKETS; i++) {
        if (!result.latency.counts[i]) continue;
        printf("%s[%.6g,%llu]", separator, bucket_ns(i) / 1e6, (unsigned long long)result.latency.counts[i]);
        separator = ",";
    }
    printf("]");
}

static void report(uint64_t unfinished) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    double cpu_us = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) * 1e6 +
                    (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec);
    double ended = result.total ? (double)result.total : 1;
    const struct histogram *latency = &result.latency;
    printf("{\"mode\":\"%s\",\"connections\":%d,\"in_flight\":%d,\"seconds\":%.3f,", options.rate > 0 ? "open" : "closed",
           options.connections, options.in_flight, options.seconds);
    if (options.rate > 0)
        printf("\"rate\":%.1f,\"send_lag_p99_ms\":%.3f,", options.rate, percentile_ms(&result.send_lag, 0.99));
    printf("\"total\":%llu,\"ok\":%llu,\"failed\":%llu,\"unfinished\":%llu,\"rps\":%.1f,", (unsigned long long)result.total,
           (unsigned long long)result.ok, (unsigned long long)result.failed, (unsigned long long)unfinished,
           (double)result.ok / options.seconds);
    printf("\"mean_ms\":%.4f,\"p50_ms\":%.4f,\"p90_ms\":%.4f,\"p99_ms\":%.4f,\"p999_ms\":%.4f,\"max_ms\":%.4f,",
           latency->total ? latency->sum_ns / (double)latency->total / 1e6 : 0, percentile_ms(latency, 0.5),
           percentile_ms(latency, 0.9), percentile_ms(latency, 0.99), percentile_ms(latency, 0.999),
           (double)latency->max_ns / 1e6);
    printf("\"client_cpu_us\":%.2f,\"answer_bytes\":%.1f,\"failures\":{", cpu_us / ended, (double)result.answer_bytes / ended);
    const char *separator = "";
    for (int i = 1; i < FAILURES; i++) {
        if (!result.failures[i]) continue;
        printf("%s\"%s\":%llu", separator, failure_names[i], (unsigned long long)result.failures[i]);
        separator = ",";
    }
    printf("}");
    if (options.print_histogram) print_histogram();
    printf("}\n");
}

int main(int argc, char **argv) {
    signal(SIGPIPE, SIG_IGN); /* a lost connection is a result, not the end */
    parse_options(argc, argv);
    read_bodies(options.bodies_path);
    epoll_fd = epoll_create1(0);
    open_connections();
    uint64_t start_ns = now_ns();
    measure_from_ns = start_ns + (uint64_t)(options.warmup_s * 1e9);
    measure_until_ns = measure_from_ns + (uint64_t)(options.seconds * 1e9);
    if (options.rate > 0) start_open_loop(start_ns);
    else start_closed_loop();
    run_loop();
    uint64_t unfinished = count_unfinished();
    report(unfinished);
    return result.failed || unfinished || !result.ok;
}
