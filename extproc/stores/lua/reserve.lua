-- {worker, call, counters, amounts by unit}, note → {"granted", readings}, {"short", readings, places} or
-- {"missing", places}. A call that is open, or settled and not booked, is granted again, and holds no more for it.

local places = missing()
if #places > 0 then return cmsgpack.pack({ "missing", places }) end

local found = {}
for place, counter in ipairs(step.counters) do found[place] = look(counter) end

local function readings(amounts)
  local all = {}
  for place, counter in ipairs(step.counters) do
    all[place] = reading(counter, found[place], amounts and amounts[counter.unit] or "0")
  end
  return all
end

local function hold(counter, seen, amount)
  local holds = { kind = counter.kind, unit = counter.unit, amount = amount, seconds = counter.seconds }
  if counter.kind == "window" then
    local n = count(counter, amount)
    holds.bucket, seen.total = n, seen.total + amount
    if amount ~= "0" then seen.buckets[n] = (seen.buckets[n] or 0) + amount end
  else
    local number = number_of(counter.key)
    add(number, "held", amount)
    seen.held = redis.call("HGET", number, "held") or "0"
  end
  return holds
end

local open, rows = open_of(step.worker), rows_of(step.worker)
if redis.call("HEXISTS", open, step.call) == 1 or redis.call("HEXISTS", rows, step.call) == 1 then
  return cmsgpack.pack({ "granted", readings() })
end

local short = {}
for place, counter in ipairs(step.counters) do
  if excess(counter, found[place], step.amounts[counter.unit]) > 0 then table.insert(short, place - 1) end
end
if #short > 0 then return cmsgpack.pack({ "short", readings(step.amounts), short }) end

local holds = {}
for place, counter in ipairs(step.counters) do
  holds[counter.key] = hold(counter, found[place], step.amounts[counter.unit])
end
redis.call("HSET", open, step.call, cmsgpack.pack({ note = ARGV[2], holds = holds }))
renew(step.worker)
return cmsgpack.pack({ "granted", readings() })
