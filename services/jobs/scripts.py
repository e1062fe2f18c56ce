"""The queue's transitions as Lua: Redis runs each script without interleaving anything else, all or nothing.

Keys, all in one slot of a cluster because of the braces (``P`` is ``{leitstand:jobs}``):

    P:job:ID        hash    state, owner, counts, times; `entry` is the job's place in its stream
    P:input:ID      string  sealed texts; gone when the job is done
    P:results:ID    hash    chunk number to sealed answers: the checkpoints, and in the end the result
    P:events:ID     stream  what happened to the job, for those who watch
    P:queue:PRIORITY:USE_CASE   stream with the consumer group `workers`: one entry per job that waits or runs
    P:delayed       zset    retries by the time they are due
    P:open, P:ended, P:dead     zsets: open jobs by creation, the others by the time they are erased
    P:tenants       hash    open jobs by tenant
    P:idem:DIGEST   string  job of an idempotency key

Who holds a job is said by `fence`, a number that rises with every attempt. A script that writes for a worker
compares it first, so what a worker says that was thought dead is refused. The group therefore needs only one
consumer (`pool`), and dead workers leave nothing behind in it.

Each script may be sent again when its reply was lost, except `TAKE`: an attempt that nobody heard of ends with
its lease. The first write of each needs memory, so that a Redis that is out of it refuses before anything changed.
The first argument is the time in ms, 0 for Redis' own clock.

What bounds a job is `fruitless`: attempts in a row that answered no further chunk, so that a long job survives many
short troubles. `attempts` counts all of them.
"""

__all__ = ["CANCEL", "CHECKPOINT", "ERASE", "FAIL", "RELEASE", "RENEW", "REPLAY", "STATS", "SUBMIT", "SWEEP", "TAKE"]

_COMMON = """
local P = KEYS[1]
local now = tonumber(ARGV[1])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000 + math.floor(time[2] / 1000)
end

local function job(id) return P .. ':job:' .. id end

local function said(id, ...) return redis.call('HMGET', job(id), ...) end

local function queue(id)
  local found = said(id, 'priority', 'use_case')
  return P .. ':queue:' .. found[1] .. ':' .. found[2]
end

local function tell(id)
  local s = said(id, 'state', 'texts', 'texts_done', 'attempts')
  redis.call('XADD', P .. ':events:' .. id, 'MAXLEN', '~', 256, '*', 'state', s[1], 'texts', s[2], 'texts_done', s[3],
    'attempts', s[4])
end

local function enqueue(id)
  local stream = queue(id)
  if redis.call('EXISTS', stream) == 0 then redis.call('XGROUP', 'CREATE', stream, 'workers', '0', 'MKSTREAM') end
  local entry = redis.call('XADD', stream, '*', 'job', id)
  redis.call('HSET', job(id), 'entry', entry, 'retry_ms', 0)
end

local function drop(id)
  local entry = said(id, 'entry')[1]
  if entry and entry ~= '' then
    redis.call('XACK', queue(id), 'workers', entry)
    redis.call('XDEL', queue(id), entry)
    redis.call('HSET', job(id), 'entry', '')
  end
  redis.call('ZREM', P .. ':delayed', id)
end

local function kept(id)
  local keys = {job(id), P .. ':input:' .. id, P .. ':results:' .. id, P .. ':events:' .. id}
  local idem = said(id, 'idem')[1]
  if idem and idem ~= '' then keys[#keys + 1] = P .. ':idem:' .. idem end
  return keys
end

local function free(id) redis.call('DECRBY', P .. ':bytes', said(id, 'bytes')[1]) end

local function erase(id)
  if redis.call('ZREM', P .. ':dead', id) == 1 then free(id) end
  redis.call('ZREM', P .. ':ended', id)
  for _, key in ipairs(kept(id)) do redis.call('DEL', key) end
end

local function settle(id, state, code, detail)
  local s = said(id, 'tenant', 'result_ttl_ms', 'dead_ttl_ms')
  local gone = now + tonumber(state == 'failed' and s[3] or s[2])
  redis.call('HSET', job(id), 'state', state, 'finished_ms', now, 'expires_ms', gone, 'retry_ms', 0, 'cancel', 0,
    'error_code', code, 'error', detail)
  drop(id)
  redis.call('ZREM', P .. ':open', id)
  if redis.call('HINCRBY', P .. ':tenants', s[1], -1) <= 0 then redis.call('HDEL', P .. ':tenants', s[1]) end
  tell(id)
  if state == 'failed' then
    redis.call('ZADD', P .. ':dead', gone, id)
    return
  end
  free(id)
  redis.call('DEL', P .. ':input:' .. id)
  if state == 'cancelled' then redis.call('DEL', P .. ':results:' .. id) end
  for _, key in ipairs(kept(id)) do redis.call('PEXPIRE', key, gone - now) end
  redis.call('ZADD', P .. ':ended', gone, id)
end

local function too_old(id)
  local s = said(id, 'queued_ms', 'max_age_ms')
  return now - tonumber(s[1]) > tonumber(s[2])
end

local function expire(id)
  settle(id, 'failed', 'expired', 'no worker could end it within its time')
end

local function held(id, fence)
  local s = said(id, 'state', 'fence')
  if s[1] == 'running' and s[2] == fence then return nil end
  if (s[1] == 'done' or s[1] == 'cancelled' or s[1] == 'failed') and s[2] == fence then return s[1] end
  return 'lost'
end

local function renew(id)
  redis.call('XCLAIM', queue(id), 'workers', 'pool', 0, said(id, 'entry')[1], 'JUSTID')
end
"""

# id, use case, priority, tenant, idempotency digest or '', body digest, sealed caller, sealed texts, number of texts,
# number of chunks, then the limits: open, open per tenant, bytes, attempts, age, result ttl, dead ttl.
SUBMIT = (
    _COMMON
    + """
local id, use_case, priority, tenant, idem, body = ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7]
local size = #ARGV[9]
if redis.call('EXISTS', job(id)) == 1 then return {'new', id} end
if idem ~= '' then
  local known = redis.call('GET', P .. ':idem:' .. idem)
  if known and redis.call('EXISTS', job(known)) == 1 then
    if said(known, 'body')[1] == body then return {'known', known} end
    return {'conflict', known}
  end
end
if redis.call('ZCARD', P .. ':open') >= tonumber(ARGV[12]) then return {'full', 'jobs'} end
if tonumber(redis.call('GET', P .. ':bytes') or 0) + size > tonumber(ARGV[14]) then return {'full', 'bytes'} end
if tonumber(redis.call('HGET', P .. ':tenants', tenant) or 0) >= tonumber(ARGV[13]) then return {'tenant', tenant} end
redis.call('HSET', job(id), 'state', 'queued', 'use_case', use_case, 'priority', priority, 'tenant', tenant,
  'idem', idem, 'body', body, 'caller', ARGV[8], 'texts', ARGV[10], 'chunks', ARGV[11], 'bytes', size,
  'max_attempts', ARGV[15], 'max_age_ms', ARGV[16], 'result_ttl_ms', ARGV[17], 'dead_ttl_ms', ARGV[18],
  'created_ms', now, 'queued_ms', now, 'texts_done', 0, 'texts_refused', 0, 'attempts', 0, 'fruitless', 0, 'fence', 0,
  'replays', 0)
redis.call('SET', P .. ':input:' .. id, ARGV[9])
redis.call('INCRBY', P .. ':bytes', size)
redis.call('HINCRBY', P .. ':tenants', tenant, 1)
redis.call('ZADD', P .. ':open', now, id)
redis.call('SADD', P .. ':use_cases', use_case)
if idem ~= '' then redis.call('SET', P .. ':idem:' .. idem, id) end
enqueue(id)
tell(id)
return {'new', id}
"""
)

# lease in ms, name of the worker, '1' to look at low priority first, then use cases; none: all that ever had a job.
# First comes what a worker left that was silent for its lease; then what waits.
TAKE = (
    _COMMON
    + """
local lease, worker = ARGV[2], ARGV[3]
local names = {unpack(ARGV, 5)}
if #names == 0 then names = redis.call('SMEMBERS', P .. ':use_cases') end
table.sort(names)

local function left_behind(stream)
  local idle = redis.pcall('XPENDING', stream, 'workers', 'IDLE', lease, '-', '+', 1)
  if idle.err or not idle[1] then return nil end
  return redis.call('XCLAIM', stream, 'workers', 'pool', lease, idle[1][1])[1]
end

local function waiting(stream)
  local got = redis.pcall('XREADGROUP', 'GROUP', 'workers', 'pool', 'COUNT', 1, 'STREAMS', stream, '>')
  if not got or got.err then return nil end
  return got[1] and got[1][2][1]
end

local function begin(stream, entry)
  local id = entry[2] and entry[2][2]
  local s = id and said(id, 'entry', 'cancel', 'fruitless', 'max_attempts')
  if not s or s[1] ~= entry[1] then
    redis.call('XACK', stream, 'workers', entry[1])
    redis.call('XDEL', stream, entry[1])
    return nil
  end
  if s[2] == '1' then settle(id, 'cancelled', '', '') return nil end
  if too_old(id) then expire(id) return nil end
  if tonumber(s[3]) >= tonumber(s[4]) then
    settle(id, 'failed', 'worker-lost',
      'its worker fell silent, after ' .. s[4] .. ' attempts in a row that answered nothing')
    return nil
  end
  redis.call('HSET', job(id), 'state', 'running', 'worker', worker, 'started_ms', now)
  redis.call('HINCRBY', job(id), 'attempts', 1)
  redis.call('HINCRBY', job(id), 'fruitless', 1)
  local fence = redis.call('HINCRBY', job(id), 'fence', 1)
  tell(id)
  return {id, fence}
end

local order = {'high', 'normal', 'low'}
if ARGV[4] == '1' then order = {'low', 'normal', 'high'} end
for _, priority in ipairs(order) do
  for offset = 1, #names do
    local stream = P .. ':queue:' .. priority .. ':' .. names[(now + offset) % #names + 1]
    local entry = left_behind(stream) or waiting(stream)
    while entry do
      local begun = begin(stream, entry)
      if begun then return begun end
      entry = left_behind(stream) or waiting(stream)
    end
  end
end
return false
"""
)

# id, fence, chunk, sealed answers, texts in it, texts of it that were refused. The last chunk ends the job.
CHECKPOINT = (
    _COMMON
    + """
local id = ARGV[2]
local over = held(id, ARGV[3])
if over then return over end
local results = P .. ':results:' .. id
if redis.call('HSETNX', results, ARGV[4], ARGV[5]) == 1 then
  redis.call('HINCRBY', job(id), 'texts_done', ARGV[6])
  redis.call('HINCRBY', job(id), 'texts_refused', ARGV[7])
  redis.call('HSET', job(id), 'fruitless', 0)
end
local s = said(id, 'cancel', 'chunks')
if s[1] == '1' then settle(id, 'cancelled', '', '') return 'cancelled' end
if redis.call('HLEN', results) >= tonumber(s[2]) then settle(id, 'done', '', '') return 'done' end
renew(id)
tell(id)
return 'running'
"""
)

# id, fence.
RENEW = (
    _COMMON
    + """
local over = held(ARGV[2], ARGV[3])
if over then return over end
renew(ARGV[2])
return 'running'
"""
)

# id, fence, delay in ms, '1' when the attempt counts, error code, error.
RELEASE = (
    _COMMON
    + """
local id = ARGV[2]
local over = held(id, ARGV[3])
if over then return over end
local s = said(id, 'cancel', 'fruitless', 'max_attempts')
if s[1] == '1' then settle(id, 'cancelled', '', '') return 'cancelled' end
if ARGV[5] == '1' and tonumber(s[2]) >= tonumber(s[3]) then
  settle(id, 'failed', ARGV[6], ARGV[7])
  return 'failed'
end
if too_old(id) then expire(id) return 'failed' end
redis.call('HSET', job(id), 'state', 'queued', 'error_code', ARGV[6], 'error', ARGV[7], 'worker', '')
if ARGV[5] ~= '1' and tonumber(s[2]) > 0 then redis.call('HINCRBY', job(id), 'fruitless', -1) end
drop(id)
if tonumber(ARGV[4]) > 0 then
  local due = now + tonumber(ARGV[4])
  redis.call('HSET', job(id), 'retry_ms', due)
  redis.call('ZADD', P .. ':delayed', due, id)
else
  enqueue(id)
end
tell(id)
return 'queued'
"""
)

# id, fence, error code, error.
FAIL = (
    _COMMON
    + """
local over = held(ARGV[2], ARGV[3])
if over then return over end
settle(ARGV[2], 'failed', ARGV[4], ARGV[5])
return 'failed'
"""
)

# id. A running job stops at its next checkpoint.
CANCEL = (
    _COMMON
    + """
local id = ARGV[2]
local state = said(id, 'state')[1]
if not state then return 'unknown' end
if state == 'queued' then settle(id, 'cancelled', '', '') return 'cancelled' end
if state == 'running' then redis.call('HSET', job(id), 'cancel', 1) return 'cancelling' end
return state
"""
)

# id. The chunks that were answered stay answered.
REPLAY = (
    _COMMON
    + """
local id = ARGV[2]
local s = said(id, 'state', 'tenant')
if not s[1] then return 'unknown' end
if s[1] ~= 'failed' then return s[1] end
redis.call('HSET', job(id), 'state', 'queued', 'fruitless', 0, 'queued_ms', now, 'finished_ms', 0, 'expires_ms', 0,
  'error_code', '', 'error', '', 'worker', '')
redis.call('HINCRBY', job(id), 'replays', 1)
redis.call('ZREM', P .. ':dead', id)
redis.call('ZADD', P .. ':open', said(id, 'created_ms')[1], id)
redis.call('HINCRBY', P .. ':tenants', s[2], 1)
enqueue(id)
tell(id)
return 'replayed'
"""
)

# id. Everything that is kept of a job that ended, its idempotency key included.
ERASE = (
    _COMMON
    + """
local state = said(ARGV[2], 'state')[1]
if not state then return 'unknown' end
if state == 'queued' or state == 'running' then return state end
erase(ARGV[2])
return 'erased'
"""
)

# Nothing more. Retries that are due come back, old jobs end, old dead letters are erased; at most 100 of each.
SWEEP = (
    _COMMON
    + """
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. ':delayed', '-inf', now, 'LIMIT', 0, 100)) do
  if too_old(id) then expire(id) else enqueue(id) end
  redis.call('ZREM', P .. ':delayed', id)
end
for _, id in ipairs(redis.call('ZRANGE', P .. ':open', 0, 99)) do
  if said(id, 'state')[1] == 'queued' and too_old(id) then expire(id) end
end
for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. ':dead', '-inf', now, 'LIMIT', 0, 100)) do
  erase(id)
end
redis.call('ZREMRANGEBYSCORE', P .. ':ended', '-inf', now)
return 0
"""
)

# Nothing more. Returns delayed, dead, bytes, age of the oldest open job in ms, then use case, entries, running, ...
STATS = (
    _COMMON
    + """
local oldest = redis.call('ZRANGE', P .. ':open', 0, 0, 'WITHSCORES')[2]
local found = {redis.call('ZCARD', P .. ':delayed'), redis.call('ZCARD', P .. ':dead'),
  tonumber(redis.call('GET', P .. ':bytes') or 0), oldest and now - tonumber(oldest) or 0}
for _, name in ipairs(redis.call('SMEMBERS', P .. ':use_cases')) do
  local entries, running = 0, 0
  for _, priority in ipairs({'high', 'normal', 'low'}) do
    local stream = P .. ':queue:' .. priority .. ':' .. name
    local pending = redis.pcall('XPENDING', stream, 'workers')
    if not pending.err then
      entries = entries + redis.call('XLEN', stream)
      running = running + pending[1]
    end
  end
  found[#found + 1] = name
  found[#found + 1] = entries
  found[#found + 1] = running
end
return found
"""
)
