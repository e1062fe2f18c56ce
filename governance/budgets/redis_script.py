"""The counts of `governance.budgets.redis` as one Lua script, which Redis runs without interruption.

Keys, all below ``{leitstand:budgets}`` and so in one slot of a cluster:

    d:KEY:START  hash   s spent, r reserved, g granted       of one day; kept eight days longer than the day
    t:KEY        string theoretical arrival time, µs         of a rate
    c:KEY        zset   hold → end of its lease, ms          of requests at once
    holds        hash   hold → its charges as JSON           an ``x`` in front: expired, and booked in full
    leases       zset   hold → end of its lease, ms
    expired      zset   hold → when it is forgotten, ms
    changes      list   JSON

KEYS[1] is the prefix, ARGV[1] a JSON list of calls, each a list that starts with the name of a function below.
Numbers stay below 2^53, where Lua's are exact; they are written with %.0f, because Lua shortens them otherwise.
"""

__all__ = ["SCRIPT"]

SCRIPT = """
local call, P = redis.call, KEYS[1] .. ':'
local HOLDS, LEASES, EXPIRED, CHANGES = P .. 'holds', P .. 'leases', P .. 'expired', P .. 'changes'
local DAY = 86400000
local clock = call('TIME')
local now_us = clock[1] * 1000000 + clock[2]
local now = math.floor(now_us / 1000)

local function int(number) return string.format('%.0f', number) end
local function add(key, field, amount)
  if amount ~= 0 and call('HINCRBY', key, field, int(amount)) < 0 then call('HSET', key, field, '0') end
end
local function day_key(charge) return P .. 'd:' .. charge[2] .. ':' .. int(charge[5]) end
local function keep(key, charge) call('PEXPIREAT', key, int(charge[6] + 8 * DAY)) end

local check = {}
function check.d(charge)
  local count = call('HMGET', day_key(charge), 's', 'r', 'g')
  local free = charge[3] + (tonumber(count[3]) or 0) - (tonumber(count[1]) or 0) - (tonumber(count[2]) or 0)
  if free < charge[4] then return math.max(free, 0), charge[6] - now end
  return free - charge[4]
end
function check.t(charge)
  local span = charge[3] * charge[4]
  local arrival = tonumber(call('GET', P .. 't:' .. charge[2])) or 0
  -- Beyond a full bucket's span only after the clock jumped back: then the bucket is empty, and fills from now on.
  arrival = math.min(math.max(arrival, now_us), now_us + span) + charge[4]
  if arrival > now_us + span then return 0, math.ceil((arrival - now_us - span) / 1000) end
  return math.floor((now_us + span - arrival) / charge[4]), nil, arrival
end
function check.c(charge, lease)
  local key = P .. 'c:' .. charge[2]
  call('ZREMRANGEBYSCORE', key, '-inf', int(now))
  local busy = call('ZCARD', key)
  if busy < charge[3] then return charge[3] - busy - 1 end
  for _, hold in ipairs(call('ZRANGEBYSCORE', key, int(now + 2 * lease), '+inf', 'LIMIT', 0, 100)) do
    call('ZADD', key, int(now + lease), hold)
  end
  return 0, 1000
end

local book = {}
function book.d(charge, hold, lease)
  local key = day_key(charge)
  call('HINCRBY', key, 'r', int(charge[4]))
  keep(key, charge)
end
function book.t(charge, hold, lease, arrival)
  call('SET', P .. 't:' .. charge[2], int(arrival), 'PX', int(math.ceil((arrival - now_us) / 1000) + 60000))
end
function book.c(charge, hold, lease)
  local key = P .. 'c:' .. charge[2]
  call('ZADD', key, int(now + lease), hold)
  call('PEXPIRE', key, int(2 * lease + DAY))
end

local run = {}
function run.hold(hold, lease, text)
  local charges, left, values, refused, wait = cjson.decode(text), {}, {}, 0, -1
  local again = call('HEXISTS', HOLDS, hold) == 1
  for i, charge in ipairs(charges) do
    if charge[1] == 'd' and (now < charge[5] or now >= charge[6]) then return {2, now, i, 0, {}} end
    local rest, refusal, value = check[charge[1]](charge, lease)
    left[i], values[i] = rest, value or 0
    if refusal and refusal > wait then refused, wait = i, refusal end
  end
  if again then return {1, now, 0, 0, left} end
  if refused > 0 then return {0, now, refused, wait, left} end
  for i, charge in ipairs(charges) do book[charge[1]](charge, hold, lease, values[i]) end
  call('HSET', HOLDS, hold, text)
  call('ZADD', LEASES, int(now + lease), hold)
  return {1, now, 0, 0, left}
end

function run.settle(hold, used, late)
  local record = call('HGET', HOLDS, hold)
  if not record then
    for i, charge in ipairs(cjson.decode(late)) do
      if charge[1] == 'd' then add(day_key(charge), 's', used[i]); keep(day_key(charge), charge) end
    end
    return 0
  end
  local expired = string.sub(record, 1, 1) == 'x'
  for i, charge in ipairs(cjson.decode(expired and string.sub(record, 2) or record)) do
    if charge[1] == 'c' then call('ZREM', P .. 'c:' .. charge[2], hold) end
    if charge[1] == 'd' then
      add(day_key(charge), 'r', expired and 0 or -charge[4])
      add(day_key(charge), 's', expired and used[i] - charge[4] or used[i])
    end
  end
  call('HDEL', HOLDS, hold)
  call('ZREM', expired and EXPIRED or LEASES, hold)
  return 1
end

local function move(charges, from, to)
  for _, charge in ipairs(charges) do
    if charge[1] == 'd' then
      add(day_key(charge), from, -charge[4])
      add(day_key(charge), to, charge[4])
    end
  end
end

function run.renew(holds, lease)
  for _, hold in ipairs(holds) do
    local record = call('HGET', HOLDS, hold)
    if record then
      local expired = string.sub(record, 1, 1) == 'x'
      local text = expired and string.sub(record, 2) or record
      local charges = cjson.decode(text)
      if expired then
        move(charges, 's', 'r')
        call('HSET', HOLDS, hold, text)
        call('ZREM', EXPIRED, hold)
      end
      for _, charge in ipairs(charges) do
        if charge[1] == 'c' then book.c(charge, hold, lease) end
      end
      call('ZADD', LEASES, int(now + lease), hold)
    end
  end
  return 0
end

function run.reconcile(lease)
  for _, hold in ipairs(call('ZRANGEBYSCORE', LEASES, int(now + 2 * lease), '+inf', 'LIMIT', 0, 100)) do
    call('ZADD', LEASES, int(now + lease), hold)
  end
  local ended = call('ZRANGEBYSCORE', LEASES, '-inf', int(now), 'LIMIT', 0, 100)
  for _, hold in ipairs(ended) do
    local record = call('HGET', HOLDS, hold)
    call('ZREM', LEASES, hold)
    if record then
      move(cjson.decode(record), 'r', 's')
      call('HSET', HOLDS, hold, 'x' .. record)
      call('ZADD', EXPIRED, int(now + DAY), hold)
    end
  end
  for _, hold in ipairs(call('ZRANGEBYSCORE', EXPIRED, '-inf', int(now), 'LIMIT', 0, 100)) do
    call('ZREM', EXPIRED, hold)
    call('HDEL', HOLDS, hold)
  end
  return #ended
end

function run.levels(charges)
  local levels = {}
  for i, charge in ipairs(charges) do
    if charge[1] == 'd' then
      local count = call('HMGET', day_key(charge), 's', 'r', 'g')
      levels[i] = {tonumber(count[1]) or 0, tonumber(count[2]) or 0, tonumber(count[3]) or 0}
    elseif charge[1] == 'c' then
      levels[i] = {0, call('ZCOUNT', P .. 'c:' .. charge[2], '(' .. int(now), '+inf'), 0}
    else
      levels[i] = {0, 0, 0}
    end
  end
  return levels
end

function run.now() return now end

local function record(change)
  call('RPUSH', CHANGES, change)
  call('LTRIM', CHANGES, -10000, -1)
end

function run.grant(charge, amount, change)
  add(day_key(charge), 'g', amount)
  keep(day_key(charge), charge)
  record(change)
  return 0
end

function run.reset(charge, change)
  local spent = tonumber(call('HGET', day_key(charge), 's')) or 0
  call('HSET', day_key(charge), 's', '0')
  keep(day_key(charge), charge)
  record((string.gsub(change, '"amount":0', '"amount":' .. int(spent), 1)))  -- quotes within its texts are escaped
  return spent
end

local results = {}
for i, each in ipairs(cjson.decode(ARGV[1])) do results[i] = run[table.remove(each, 1)](unpack(each)) end
return results
"""
