-- What every step begins with. BUCKETS and LEASE are set above. KEYS[1]: what the names of all our keys begin with;
-- ARGV[1]: the step, in MessagePack, which here knows no binary: notes and rows are arguments of their own.
--
-- Numbers are decimal strings, changed by HINCRBY alone: Lua's own are exact to 2^53, and serve for comparisons.
--
--   epoch            when this state was born
--   workers          sorted set: when each worker counts as dead
--   open:<worker>    hash: call → {note, holds}: its reservation
--   rows:<worker>    hash: call → row: settled, not yet booked
--   number:<key>     hash of a counter: used and held, or the amounts of a window by bucket (and a mark: it is known)

local step = cmsgpack.unpack(ARGV[1])
local time = redis.call("TIME")
local now = time[1] + time[2] / 1000000

local EPOCH, WORKERS = KEYS[1] .. "epoch", KEYS[1] .. "workers"

local function open_of(worker) return KEYS[1] .. "open:" .. worker end
local function rows_of(worker) return KEYS[1] .. "rows:" .. worker end
local function number_of(key) return KEYS[1] .. "number:" .. key end

local function digits(whole) return string.format("%.0f", whole) end

local function add(number, field, amount)
  if amount ~= "0" then redis.call("HINCRBY", number, field, amount) end
end

local function take(number, field, amount)
  if amount ~= "0" and redis.call("HINCRBY", number, field, "-" .. amount) <= 0 then
    redis.call("HDEL", number, field)
  end
end

local function bucket(seconds) return math.floor(now * BUCKETS / seconds) end

local function leaves_in(n, seconds) return (n + BUCKETS + 1) * seconds / BUCKETS - now end

local function renew(worker) redis.call("ZADD", WORKERS, now + LEASE, worker) end

-- Whether the state is younger than this: then what it does not know may have been lost.
local function is_younger(seconds)
  local born = redis.call("GET", EPOCH)
  if not born then redis.call("SET", EPOCH, string.format("%.6f", now)) end
  return not born or now - born < seconds
end

local function is_missing(counter)
  local number = number_of(counter.key)
  if counter.kind == "quota" then return redis.call("HEXISTS", number, "used") == 0 end
  return counter.kind == "window" and redis.call("EXISTS", number) == 0 and is_younger(counter.seconds)
end

local function missing()
  local places = {}
  for place, counter in ipairs(step.counters) do
    if is_missing(counter) then table.insert(places, place - 1) end
  end
  return places
end

-- What a counter says: {used, held}, or {total, buckets} of a window. Drops what has left the window.
local function look(counter)
  local number = number_of(counter.key)
  if counter.kind ~= "window" then
    local fields = redis.call("HMGET", number, "used", "held")
    return { used = counter.kind == "concurrent" and "0" or fields[1], held = fields[2] or "0" }
  end
  local fields, found, newest = redis.call("HGETALL", number), { total = 0, buckets = {} }, bucket(counter.seconds)
  for i = 1, #fields, 2 do
    local n, amount = tonumber(fields[i]), fields[i + 1]
    if n and n < newest - BUCKETS then
      redis.call("HDEL", number, fields[i])
    elseif n then
      if n > newest then -- the clock went back: it counts as of now, or it would stay for as long as that jump was
        redis.call("HDEL", number, fields[i])
        redis.call("HINCRBY", number, digits(newest), amount)
        n = newest
      end
      found.buckets[n] = (found.buckets[n] or 0) + amount
      found.total = found.total + amount
    end
  end
  return found
end

local function excess(counter, found, amount)
  return (found.total or found.used + found.held) + amount - counter.limit
end

-- Seconds until a window has room for the amount, or, where it has, until it is empty.
local function wait(counter, found, amount)
  if tonumber(amount) > counter.limit then return math.huge end
  local left, order = excess(counter, found, amount), {}
  for n in pairs(found.buckets) do table.insert(order, n) end
  if #order == 0 then return 0 end
  if left <= 0 then return leaves_in(math.max(unpack(order)), counter.seconds) end
  table.sort(order)
  for _, n in ipairs(order) do
    left = left - found.buckets[n]
    if left <= 0 then return leaves_in(n, counter.seconds) end
  end
end

local function reading(counter, found, amount)
  if counter.kind ~= "window" then return { found.used, found.held, 0 } end
  return { digits(found.total), "0", wait(counter, found, amount) }
end

-- Adds to what a counter has used. Returns the bucket of a window.
local function count(counter, amount)
  local number = number_of(counter.key)
  if counter.kind == "quota" then
    add(number, "used", amount)
  elseif counter.kind == "window" then
    local n = bucket(counter.seconds)
    redis.call("HSET", number, "mark", "1")
    add(number, digits(n), amount)
    redis.call("EXPIRE", number, 2 * counter.seconds)
    return n
  end
end

-- Ends what a call holds of a counter, which gets what the call took.
local function finish(key, hold, amount)
  local number = number_of(key)
  if hold.kind ~= "window" then
    take(number, "held", hold.amount)
    if hold.kind == "quota" and redis.call("HEXISTS", number, "used") == 1 then add(number, "used", amount) end
  elseif hold.bucket >= bucket(hold.seconds) - BUCKETS and redis.call("EXISTS", number) == 1 then
    add(number, digits(hold.bucket), amount)
    take(number, digits(hold.bucket), hold.amount)
  end
end

local function release(worker, call)
  local record = redis.call("HGET", open_of(worker), call)
  if not record then return end
  for key, hold in pairs(cmsgpack.unpack(record).holds) do finish(key, hold, "0") end
  redis.call("HDEL", open_of(worker), call)
end
