-- {loaded: [{counter, used, buckets}]} → nothing. What is known stays as it is.

local DAY = 86400

for _, loaded in ipairs(step.loaded) do
  local counter = loaded.counter
  local number = number_of(counter.key)
  if counter.kind == "quota" and redis.call("HSETNX", number, "used", loaded.used) == 1 then
    -- Calls may end after the period, and orphans much later.
    if counter["end"] then redis.call("EXPIREAT", number, digits(math.max(counter["end"], now) + DAY)) end
  elseif counter.kind == "window" and redis.call("EXISTS", number) == 0 then
    count(counter, "0")
    local newest = bucket(counter.seconds)
    for n, amount in pairs(loaded.buckets) do
      if n >= newest - BUCKETS then add(number, digits(math.min(n, newest)), amount) end
    end
  end
end
