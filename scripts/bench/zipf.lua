-- What wrk asks for in the zipf row of hit.sh: 100,000 keys, the one of rank r with a probability in proportion to 1/r^0.99, as
-- YCSB does. Usage: wrk ... -s zipf.lua URL -- PATTERN, where PATTERN is the path of a key, with @ for its five digits.
local keys, exponent, draws = 100000, 0.99, 300000
local requests, at = {}, 0

function init(args)
	local sums, sum = {}, 0
	for rank = 1, keys do
		sum = sum + rank ^ -exponent
		sums[rank] = sum
	end
	math.randomseed(1) -- the same for every server
	for i = 1, draws do
		local x, low, high = math.random() * sum, 1, keys
		while low < high do
			local middle = math.floor((low + high) / 2)
			if sums[middle] < x then low = middle + 1 else high = middle end
		end
		local digits = string.format("%05d", low * 7919 % keys) -- ranks are not neighbours on the disk
		requests[i] = wrk.format("GET", (args[1]:gsub("@", digits)))
	end
end

function request()
	at = at % draws + 1
	return requests[at]
end
