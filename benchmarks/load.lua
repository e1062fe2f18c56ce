-- wrk script: posts one body per line of a file, in a random order, and reports as one JSON line.
-- wrk -s load.lua http://host/path -- BODIES_FILE
local bodies, threads = {}, {}

function setup(thread)
  table.insert(threads, thread)
  thread:set("seed", 17 + #threads)
end

function init(args)
  math.randomseed(seed)
  statuses, retry = {}, 0
  for line in io.lines(args[1]) do bodies[#bodies + 1] = line end
  for i = #bodies, 2, -1 do
    local j = math.random(i)
    bodies[i], bodies[j] = bodies[j], bodies[i]
  end
  at = 0
end

local headers = { ["Content-Type"] = "application/json" }

function request()
  at = at % #bodies + 1
  return wrk.format("POST", nil, headers, bodies[at])
end

failed, shed = 0, 0
function response(status)
  if status == 503 then shed = shed + 1 elseif status ~= 200 then failed = failed + 1 end
end

function done(summary, latency)
  local shed, failed = 0, 0
  for _, thread in ipairs(threads) do
    shed = shed + (thread:get("shed") or 0)
    failed = failed + (thread:get("failed") or 0)
  end
  local e = summary.errors
  print(string.format(
    'JSON {"requests": %d, "seconds": %.3f, "shed": %d, "failed": %d, "socket_errors": %d, "p50_ms": %.2f, "p90_ms": %.2f, "p99_ms": %.2f, "max_ms": %.2f}',
    summary.requests, summary.duration / 1e6, shed, failed, e.connect + e.read + e.write + e.timeout,
    latency:percentile(50) / 1e3, latency:percentile(90) / 1e3, latency:percentile(99) / 1e3, latency.max / 1e3))
end
